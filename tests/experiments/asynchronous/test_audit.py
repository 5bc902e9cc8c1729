"""A run of the command, stopped and continued, whose schedule is audited and replayed."""

import json
import os
import shutil

from experiments.run.survival.damage import largest_file
from tests.experiments.runs import command, run, run_together, small, write_corpus


def test_a_run_that_was_stopped_is_audited_and_replayed(tmp_path):
    write_corpus(tmp_path / "corpus")
    overrides = {
        "data.seq_len": 16, "data.batch_size": 4, "model.width": 16,
        "parallel.strategy": "parameter_server", "parallel.server.mode": "async",
        "parallel.server.workers": 3, "parallel.server.slow": "(1,1,4)",
        "parallel.exchange.codec": "int8", "eval_every": 0, "save_every": 5,
    }  # fmt: skip
    workdir = tmp_path / "run"
    flags = [*small(tmp_path, **overrides), f"--workdir={workdir}", "--devices=1"]
    run("train", *flags, "--stop_at=7")
    # What a killed run leaves after its last checkpoint.
    with (workdir / "schedule.jsonl").open("a") as stream:
        stream.write('{"update": 8, "worker": 0, "number": 99, "step": 8}\n{"upd')
    run("train", *flags)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    trained = [r for r in records if r["split"] == "train"]
    assert sorted(r["number"] for r in trained) == list(range(12))
    assert {r["worker"] for r in trained} == {0, 1, 2}
    lines = [json.loads(line) for line in (workdir / "schedule.jsonl").open()]
    assert [(x["update"], x["number"]) for x in lines] == [
        (r["step"], r["number"]) for r in trained
    ]
    staleness = [r["staleness"] for r in trained]
    assert staleness == [x["update"] - 1 - x["version"] for x in lines]
    assert json.loads((workdir / "summary.json").read_text())["workers"] == 3
    found = json.loads(run("audit", f"--workdir={workdir}", "--replay").stdout)
    counted = {"applied": 12, "lost": 0, "repeated": 0, "max_staleness": max(staleness)}
    assert found | counted | {"replay_equal": True} == found
    lines[3]["number"] = lines[4]["number"]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "schedule.jsonl").write_text(text)
    # The last checkpoint is damaged, so the run would go on from the one before.
    file = largest_file(workdir)
    os.truncate(file, file.stat().st_size // 2)
    bad = run("audit", f"--workdir={workdir}", check=False)
    assert bad.returncode == 1 and "step 12 is damaged" in bad.stderr
    counted = {"updates": 10, "applied": 10, "lost": 1, "repeated": 1}
    assert json.loads(bad.stdout) | counted == json.loads(bad.stdout)
    check_runs_without_a_position(workdir)


def check_runs_without_a_position(workdir):
    """A run that was killed before its first checkpoint, or its first on a server."""
    checkpoints, started = workdir / "checkpoints", workdir.parent / "started"
    shutil.rmtree(checkpoints / "12")
    shutil.rmtree(checkpoints / "10" / "comm")  # no other strategy has it
    shutil.copytree(workdir, started, ignore=lambda *_: ["checkpoints"])
    both = [(command("audit", f"--workdir={x}"), {}) for x in (workdir, started)]
    other, none = run_together(both, check=False)
    assert other.returncode == none.returncode == 2
    assert "at step 10, is of another strategy than 'parameter_server'" in other.stderr
    assert f"{started}/checkpoints holds no checkpoint of training yet" in none.stderr
    assert not (started / "checkpoints").exists()


def test_islands_that_stop_between_merges_are_audited_and_replayed(tmp_path):
    """Of 12 numbers, pushes have 2 or fewer; the run stops in the middle of a push."""
    write_corpus(tmp_path / "corpus")
    overrides = {
        "data.seq_len": 16, "data.batch_size": 4, "model.width": 16,
        "parallel.strategy": "async_diloco", "parallel.local.every": 2,
        "parallel.server.workers": 2, "parallel.server.slow": "(1,2)",
        "parallel.merge.by_speed": True, "eval_every": 0,
    }  # fmt: skip
    workdir = tmp_path / "run"
    flags = [*small(tmp_path, **overrides), f"--workdir={workdir}", "--devices=1"]
    run("train", *flags, "--stop_at=5")
    run("train", *flags)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    assert [r["step"] for r in records if r["split"] == "train"] == [*range(1, 13)]
    lines = [json.loads(line) for line in (workdir / "schedule.jsonl").open()]
    assert sorted(line["number"] for line in lines) == [*range(12)]
    assert max(line["step"] for line in lines) == 12
    found = json.loads(run("audit", f"--workdir={workdir}", "--replay").stdout)
    expected = {"applied": 12, "lost": 0, "repeated": 0, "replay_equal": True}
    assert found | expected == found
