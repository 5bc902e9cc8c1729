"""What a run leaves behind, and the commands that read it."""

import json
import math
import os
import subprocess

import jax
import numpy as np
import pytest

from experiments.run.checkpoint import Checkpoints
from experiments.run.evaluation import Evaluator
from experiments.run.restore import load_run, run_data
from tests.experiments.runs import (
    ROOT,
    command,
    losses,
    run,
    run_together,
    small,
    write_corpus,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    write_corpus(folder / "corpus", 30)
    overrides = {"steps": 60, "eval_every": 20, "save_every": 20, "model.width": 64}
    flags = [*small(folder, **overrides), f"--workdir={folder}/run", "--devices=4"]
    told = run("train", *flags)
    assert " epochs), " in told.stdout
    return folder


def test_workdir_holds_what_it_should(folder):
    workdir = folder / "run"
    summary = json.loads((workdir / "summary.json").read_text())
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    train = [r for r in records if r["split"] == "train"]
    evals = [r for r in records if r["split"] == "eval"]
    assert [r["step"] for r in train] == list(range(1, 61))
    assert [r["step"] for r in evals] == [20, 40, 60]
    assert all(r["perplexity"] == pytest.approx(math.exp(r["loss"])) for r in records)
    assert train[-1]["tokens"] == summary["tokens"] > 60 * 16 * 20
    (rows,) = (folder / "cache" / "rows").glob("*/meta.json")
    epochs = 16 / json.loads(rows.read_text())["train"]["rows"]
    assert [r["epochs"] for r in train[::59]] == pytest.approx([epochs, 60 * epochs])
    assert summary["epochs"] == pytest.approx(train[-1]["epochs"])
    assert {"grad_norm", "learning_rate", "step_seconds", "data_wait_seconds"} < set(
        train[0]
    )
    assert summary["val_loss"] == evals[-1]["loss"] < evals[0]["loss"]
    assert summary["val_perplexity"] == pytest.approx(math.exp(summary["val_loss"]))
    assert summary["devices"] == 4 and summary["strategy"] == "jit"
    assert set(summary["seconds"]) == {
        "prepare", "compile", "data", "step", "check", "eval", "checkpoint", "copy",
    }  # fmt: skip
    config = json.loads((workdir / "config.json").read_text())
    assert config["steps"] == 60 and config["model"]["width"] == 64
    kept = sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*"))
    assert kept == [40, 60]


def test_learns_more_than_a_bigram_model(folder):
    # Words in random order: what is left to learn beyond pairs of tokens is spelling.
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["val_loss"] < 0.75 * math.log(300)


def test_tensorboard_reads_the_events(folder):
    from tensorboardX.proto.event_pb2 import Event

    (file,) = (folder / "run" / "tensorboard").iterdir()
    raw, values, offset = file.read_bytes(), {}, 0
    while offset < len(raw):  # TFRecord: length, its CRC, the record, its CRC
        length = int.from_bytes(raw[offset : offset + 8], "little")
        event = Event.FromString(raw[offset + 12 : offset + 12 + length])
        for value in event.summary.value:
            values[value.tag, event.step] = value.simple_value
        offset += 16 + length
    for step, loss in losses(folder / "run").items():
        assert values["train/loss", step] == pytest.approx(loss, rel=1e-6)
    assert ("eval/bits_per_byte", 60) in values


def test_evaluate_finds_the_loss_of_the_summary(folder):
    result = run(
        "evaluate", f"--workdir={folder}/run", "--devices=2", "--checkpoint=latest"
    )
    evaluation = json.loads((folder / "run" / "evaluation.json").read_text())
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert evaluation["loss"] == pytest.approx(summary["val_loss"], rel=1e-6)
    assert evaluation["bits_per_byte"] == pytest.approx(
        summary["val_bits_per_byte"], rel=1e-6
    )
    assert evaluation["step"] == 60
    assert "perplexity" in result.stdout
    low, high = evaluation["loss_interval"]
    np.testing.assert_allclose((low, high), summary["loss_interval"], rtol=1e-5)
    assert low < evaluation["loss"] < high
    (meta,) = (folder / "cache" / "rows").glob("*/meta.json")
    documents = json.loads(meta.read_text())["documents"]["validation"]
    assert evaluation["documents"] == summary["documents"] == documents > 1
    assert f" [{low:.2f}, {high:.2f}] over {documents} documents\n" in result.stdout


def test_checkpoints_are_compared_by_the_same_rows(folder):
    """The last evaluation is of all rows, its score of as many as those before it."""
    workdir = folder / "run"
    config, task, params, _, mesh = load_run(workdir, "60")
    data = run_data(workdir, config)
    evaluate = Evaluator(task, data.tokenizer, data.validation, 16, mesh)
    with Checkpoints(workdir / "checkpoints", 2, write=False) as checkpoints:
        found = {x.step: x.metrics for x in checkpoints.checkpointer.checkpoints}
    assert [score["rows"] for score in found.values()] == [16, 16]
    assert found[40]["val_loss"] == losses(workdir, "eval")[40]
    few, whole = (evaluate(params, num)["loss"] for num in (1, 0))
    assert found[60]["val_loss"] == pytest.approx(few, rel=1e-5)
    assert abs(few - whole) > 1e-4
    assert losses(workdir, "eval")[60] == pytest.approx(whole, rel=1e-5)
    assert_documents_have_their_losses(task, params, data.validation, evaluate)


def assert_documents_have_their_losses(task, params, rows, evaluate):
    logits = jax.jit(task.logits)(params, {
        "tokens": rows.tokens.astype(np.int32), "segments": rows.segments.astype(np.int32)
    })  # fmt: skip
    logp = np.asarray(jax.nn.log_softmax(logits), np.float64)
    labels, segments = rows.tokens[:, 1:, None].astype(int), rows.segments
    loss = -np.take_along_axis(logp, labels, -1)[..., 0]
    inside = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    found = interval_sums(evaluate.batches(params))
    for number in np.unique(rows.documents[:, 1:][inside]):
        mine = inside & (rows.documents[:, 1:] == number)
        np.testing.assert_allclose(found.pop(number), (loss[mine].sum(), mine.sum()), 1e-5)
    assert not found


def interval_sums(batches) -> dict[int, np.ndarray]:
    """Return the loss and the tokens of each document, over all batches."""
    found: dict[int, np.ndarray] = {}
    for batch in batches:
        for number, *sums in zip(*batch.documents, strict=True):
            found[number] = found.get(number, 0) + np.array(sums)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a folder read-only needs root")
def test_evaluate_a_read_only_run_after_its_text_has_changed(folder):
    summary = json.loads((folder / "run" / "summary.json").read_text())
    new, frozen = folder / "corpus" / "new.txt", folder / "frozen"
    frozen.mkdir()
    subprocess.run(["mount", "--bind", folder / "run", frozen], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", frozen], check=True)
        new.write_text("a file of words that nobody knew before\n" * 40)
        result, python = run_together(
            [
                (command("evaluate", f"--workdir={frozen}", "--devices=2", *flags), {})
                for flags in (["--checkpoint=latest"], [f"--on={ROOT}/lm/task.py"])
            ]
        )
    finally:
        subprocess.run(["umount", frozen], check=True)
        new.unlink(missing_ok=True)
    told = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert float(told["loss"].split()[0]) == pytest.approx(summary["val_loss"], abs=1e-4)
    assert "evaluation.json could not be written: Read-only" in result.stderr
    assert "keyword" in python.stdout and "accuracy" in python.stdout


def test_evaluate_on_python_tells_classes(folder):
    file = ROOT / "lm" / "task.py"
    result = run("evaluate", f"--workdir={folder}/run", f"--on={file}", "--devices=2")
    evaluation = json.loads((folder / "run" / "evaluation.json").read_text())
    targets = sum(c["targets"] for c in evaluation["classes"].values())
    assert targets == evaluation["tokens"] and "keyword" in result.stdout
    assert 0 < evaluation["accuracy"] <= evaluation["top_5_accuracy"] < 1
    bad = run("evaluate", f"--workdir={folder}/run", "--on=no/such/*.txt", check=False)
    assert bad.returncode == 2 and "matches no file" in bad.stderr
    bad = run("evaluate", f"--workdir={folder}/run", "--on=shifted", check=False)
    assert bad.returncode == 2 and "no text of another kind" in bad.stderr


def test_bits_per_byte_are_nats_over_the_text_that_was_held_out(folder):
    from lm.data.sources.files import text_corpus

    corpus = text_corpus(str(folder / "corpus"), "", 0.05)
    train, held_out = (dict.fromkeys(corpus.texts(split)) for split in corpus.splits)
    num_bytes = sum(len(text.encode()) for text in held_out if text not in train)
    run("evaluate", f"--workdir={folder}/run", "--checkpoint=60")
    result = json.loads((folder / "run" / "evaluation.json").read_text())
    nats = result["loss"] * result["tokens"]
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes)


def test_generate_greedy_sampled_and_from_a_file(folder):
    flags = [f"--workdir={folder}/run", "--max_new_tokens=12"]
    greedy = [run("generate", *flags, "--prompt=def ", "--temperature=0") for _ in range(2)]
    assert greedy[0].stdout == greedy[1].stdout
    assert greedy[0].stdout.startswith("def ") and len(greedy[0].stdout) > 8
    prompts = "def \nreturn\x0c\u2028 \n"
    (folder / "prompts").write_text("\ufeff" + prompts, encoding="utf-8")
    # Some of the values are larger than anything that they bound.
    sampled = run(
        "generate", *flags, f"--prompts_file={folder}/prompts", "--top_k=99999",
        "--top_p=0.9", "--seed=4294967295", "--slots=999999999", "--chunk=999999999",
    )  # fmt: skip
    assert sampled.stdout.startswith("def ")
    assert "\nreturn\x0c\u2028 " in sampled.stdout
    assert sampled.stdout.count("-" * 80) == 2


def test_processes_generate_what_one_does(folder):
    prompts = folder / "some_prompts"
    prompts.write_text("def \nreturn \nclass A\nimport os, sys\nx\n")
    flags = [
        f"--workdir={folder}/run", f"--prompts_file={prompts}", "--max_new_tokens=20",
        "--slots=1", "--chunk=2", "--seed=3",
    ]  # fmt: skip
    one = run("generate", *flags).stdout
    assert one.count("-" * 80) == 5
    two = run(
        "launch", "--processes=2", "--devices_per_process=2",
        "--module=experiments.generate", "--", *flags,
    )  # fmt: skip
    written = two.stdout.splitlines(keepends=True)
    assert "".join(line for line in written if not line.startswith("[Gloo]")) == one
    bad = run("generate", *flags, "--slots=0", check=False)
    assert bad.returncode == 2 and "slots is 0; it must be at least 1" in bad.stderr


def test_measure_tells_what_a_step_costs(folder):
    flags = small(folder, **{"parallel.strategy": "shard_map"})
    out = folder / "measured.json"
    run("measure", *flags, "--devices=4", "--num_steps=4", f"--output={out}")
    told = json.loads(out.read_text())
    low, high = told["step_seconds_quartiles"]
    assert 0 < low <= told["step_seconds"] <= high
    assert told["mfu"] == pytest.approx(
        told["model_flops_per_second"] / told["product_limit"]
    )
    assert "duty_cycle" not in told  # of accelerators alone
    num_parameters = told["state_bytes"] // 12  # with Adam's two moments, and few numbers
    by_all_reduce = 2 * 4 * num_parameters * 3 / 4  # 2 P (N - 1) / N floats
    assert told["sent_bytes"] == pytest.approx(by_all_reduce, rel=1e-3)
    assert told["peak_bytes"] > told["state_bytes"]


def test_dry_run_tells_the_memory_and_leaves_nothing(folder):
    result = run(
        "train", *small(folder), "--dry_run", "--devices=4",
        "--config.parallel.strategy=fsdp", f"--workdir={folder}/dry",
    )  # fmt: skip
    lines = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    lines = {name: value.strip() for name, value in lines.items()}
    assert lines["mesh"].startswith("{'data': 4}")
    assert lines["tokens per step"] == "512"
    assert lines["rows per device"] == "4"
    for name in ("parameters per device", "optimizer per device", "peak per device"):
        assert lines[name].endswith("B")
    assert lines["all-gather over data"].endswith("collectives")
    assert not (folder / "dry").exists()


def test_importing_the_trainer_is_quick():
    import sys

    def seconds(module: str) -> float:
        """Return seconds of a core, which other work on the machine changes little."""
        code = f"import time, {module}; print(time.process_time())"
        return float(subprocess.check_output([sys.executable, "-c", code]))

    # Machines differ, so the bound is in imports of JAX: Orbax, Grain and Flax together
    # take about as long; TensorFlow or TFDS's heavy parts would take several times that.
    assert seconds("experiments.train") / seconds("jax") < 5


def test_traced_norms_are_logged(folder):
    flags = small(folder, trace_norms=True, steps=2, **{"model.num_layers": 2})
    run("train", *flags, f"--workdir={folder}/traced", "--devices=2")
    records = [json.loads(line) for line in (folder / "traced/metrics.jsonl").open()]
    for record in (r for r in records if r["split"] == "train"):
        norms = [x for name, x in record.items() if name.startswith("grad_norm/")]
        assert math.hypot(*norms) == pytest.approx(record["grad_norm"], rel=1e-5)
        layers = {"layers/0", "layers/1"}
        assert {f"grad_norm/{layer}" for layer in layers} < set(record)
        rms = {name: x for name, x in record.items() if name.startswith("activation_rms/")}
        assert set(rms) == {f"activation_rms/{layer}" for layer in layers}
        assert all(0 < x < 100 for x in rms.values())


@pytest.mark.parametrize("strategy", ["gpipe", "local_sgd"])
def test_norms_are_not_traced_where_no_step_has_them_all(folder, strategy):
    flags = small(folder, trace_norms=True, **{"parallel.strategy": strategy})
    result = run("train", *flags, f"--workdir={folder}/no", check=False)
    assert result.returncode == 2
    assert f"trace_norms is set, but strategy '{strategy}'" in result.stderr


def test_evaluate_prints_the_neighbours_of_tokens(folder):
    file = folder / "vectors.txt"
    flags = [f"--workdir={folder}/run", f"--embeddings_to={file}"]
    said = run("evaluate", *flags, "--neighbours=self,in", "--checkpoint=latest").stdout
    lines = said.splitlines()
    heads = [x for x in lines if ", token " in x]
    assert [x.split(",")[0] for x in heads] == ["'self'", "'in'"] and len(
        lines
    ) == 2 * 11 + 1
    (count, width), *rows = (x.split() for x in file.read_text().splitlines())
    table = np.array([row[1:] for row in rows], np.float32)
    assert table.shape == (int(count), int(width)) == (300, 64)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    index = int(heads[0].split()[-1])
    nearest = np.sort(np.delete(unit @ unit[index], index))[::-1][:10]
    told = [float(x.split()[0]) for x in lines[1:11]]
    np.testing.assert_allclose(told, nearest, atol=1e-4)
    refused = run("evaluate", *flags, "--neighbours=zebra", check=False)
    assert refused.returncode == 2 and "'zebra' is no token" in refused.stderr
