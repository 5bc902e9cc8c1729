"""A sweep is killed half-way and finished by the same command; its report is read."""

import json
import os
import re
import signal
import stat
import subprocess
import time

import pytest

from tests.experiments.runs import ROOT, command, run, run_together, small, write_corpus

SWEEP = """
from configs.sweeps.combine import each, product

def get_sweep():
    fixed = {fixed}
    good = product([fixed], each("devices", 1, 2))
    return good + [fixed | {{"parallel.data": 3, "data.batch_size": 8}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write_corpus(folder / "corpus")
    given = small(folder, **{"parallel.strategy": "shard_map", "eval_every": 5})
    fixed = {"config": given[0].removeprefix("--config=")}
    for flag in given[1:]:
        name, value = flag.removeprefix("--config.").split("=", 1)
        fixed[name] = int(value) if value.isdigit() else value
    (folder / "members.py").write_text(SWEEP.format(fixed=fixed | {"steps": 20}))
    return folder


def sweep(folder) -> list[str]:
    return [f"--sweep={folder}/members.py", f"--workdir={folder}/runs"]


@pytest.fixture(scope="module")
def finished(folder):
    """Kill the sweep when its second member is under way, then give the command again."""
    process = subprocess.Popen(
        command("sweep", *sweep(folder)), cwd=ROOT, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    second = folder / "runs" / "batch_size=16,devices=2" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (second.exists() and second.stat().st_size > 0):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=100)
    assert process.returncode == 130 and "goes on from here" in told
    first = folder / "runs" / "batch_size=16,devices=1" / "summary.json"
    before = first.stat().st_mtime_ns
    result = run("sweep", *sweep(folder))
    assert first.stat().st_mtime_ns == before  # it was complete, and is not run again
    return result


def test_every_member_is_there_once_and_whole(folder, finished):
    members = json.loads((folder / "runs" / "sweep.json").read_text())
    assert len(members) == 3
    for name in list(members)[:2]:
        lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        steps = [r["step"] for r in records if r["split"] == "train"]
        assert steps == list(range(1, 21))
    losses = {
        name: json.loads((folder / "runs" / name / "summary.json").read_text())["val_loss"]
        for name in list(members)[:2]
    }
    # The same batches on one device and on two.
    one, two = (losses[f"batch_size=16,devices={n}"] for n in (1, 2))
    assert one == pytest.approx(two, rel=1e-5)


def test_a_failed_member_is_told_and_stops_no_other(folder, finished):
    assert "failed" in finished.stdout and "parallel.data 3" in finished.stdout
    (error,) = (folder / "runs").glob("*.error")
    assert "parallel.data 3" in error.read_text()
    assert (folder / "runs" / "batch_size=16,devices=2" / "summary.json").exists()


def test_report(folder, finished):
    run("report", folder / "runs")
    html = (folder / "runs" / "report.html").read_text()
    markdown = (folder / "runs" / "report.md").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', html)  # needs nothing else
    for page in (html, markdown):
        assert "parallel.data 3" in page
        assert "emulated" in page and "Not answered" in page
    summary = folder / "runs" / "batch_size=16,devices=2" / "summary.json"
    shown = json.loads(summary.read_text())
    cells = next(
        line for line in markdown.splitlines()
        if line.startswith("| batch_size=16,devices=2 | 2 emulated")
    )  # fmt: skip
    assert f"{shown['val_loss']:.4g}" in cells and f"{shown['val_perplexity']:.4g}" in cells
    pictures = re.findall(r"!\[.*\]\((.*)\)", markdown)
    assert html.count("data:image/png") == len(pictures) >= 4
    assert all((folder / "runs" / name).stat().st_size > 1000 for name in pictures)


def test_dry_run_lists_members(folder, finished):
    only = "--only=batch_size=16,devices=2"
    result = run("sweep", *sweep(folder), "--dry_run", only)
    (line,) = result.stdout.splitlines()[1:]
    assert "batch_size=16,devices=2" in line and line.split()[:2] == ["10.2", "k"]


def test_bad_sweeps_end_at_once_and_claim_nothing(tmp_path):
    """What can be wrong in the file is tested with its reader."""
    good = f"get_sweep = lambda: [{{'config': {str(ROOT / 'configs/tiny.py')!r}}}]\n"
    (tmp_path / "good.py").write_text(good)
    (tmp_path / "bad.py").write_text("get_sweep = list\n")
    (tmp_path / "worse.py").write_text("x = 1\ndef get_sweep(:\n")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes").write_text("not a sweep")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "sweep.json").write_text("{")
    cases = [  # the file, the workdir, further flags -> what the message must say
        ("bad", "runs", [], "get_sweep() returned no member"),
        ("worse", "runs", [], "worse.py, line 2: SyntaxError"),
        ("none", "runs", [], "none.py: there is no such file"),
        ("good", "foreign", [], "not empty and holds no sweep.json"),
        ("good", "damaged", [], "damaged/sweep.json is damaged"),
        ("good", "good.py/runs", [], "Not a directory"),
        ("good", "runs", ["--only=x"], "--only=x matches none of the members: base"),
        ("good", "runs", ["--slurm=time=9"], "needs --executor=slurm"),
        ("good", "runs", ["--executor=slurm", "--slurm=time"], "expected NAME=VALUE"),
        ("good", "runs", ["--executor=slurm", "--slurm=x=1"], "--slurm=x=1: "),
    ]
    commands = [
        command("sweep", f"--sweep={tmp_path}/{file}.py", f"--workdir={tmp_path}/{workdir}")
        + flags
        for file, workdir, flags, _ in cases
    ]
    results = run_together([(each, {}) for each in commands], check=False)
    for (*_, words), result in zip(cases, results, strict=True):
        assert result.returncode == 2 and words in result.stderr, result
        assert len(result.stderr.strip().splitlines()) == 1, result
    assert not (tmp_path / "runs").exists()
    assert [file.name for file in (tmp_path / "foreign").iterdir()] == ["notes"]


SBATCH = """#!/bin/sh
# What SLURM would do, on this machine: run the script as job 7's only task.
for script; do :; done
export SLURM_JOB_ID=7 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
export SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=localhost
(sh $script; touch $script.ended) > /dev/null 2>&1 &
echo Submitted batch job 7
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do
  case "$1" in --output|--error) shift;; esac
  shift
done
exec "$@"
"""
SACCT = """#!/bin/sh
echo 'JobID|State|NodeList'
if ls SLURM/*.ended > /dev/null 2>&1; then state=COMPLETED; else state=RUNNING; fi
echo "7|$state|localhost"
"""


def test_members_are_handed_to_slurm(folder, finished, tmp_path):
    """With commands that stand for SLURM's and run what they are given at once."""
    programs = {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "squeue": "#!/bin/sh\n"}
    for name, text in programs.items():
        file = tmp_path / name
        file.write_text(text.replace("SLURM/", f"{tmp_path}/runs/slurm/"))
        file.chmod(file.stat().st_mode | stat.S_IEXEC)
    flags = [
        f"--sweep={folder}/members.py", f"--workdir={tmp_path}/runs", "--executor=slurm",
        "--only=batch_size=16,devices=1", "--slurm=partition=cpu,time=9",
    ]  # fmt: skip
    environ = {"PYTHONPATH": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    (result,) = run_together([(command("sweep", *flags), environ)])
    summary = tmp_path / "runs" / "batch_size=16,devices=1" / "summary.json"
    assert summary.exists(), result.stderr[-2000:]
    script = (tmp_path / "runs" / "slurm" / "7_submission.sh").read_text()
    assert "#SBATCH --partition=cpu" in script and "#SBATCH --time=9" in script
    there = folder / "runs" / "batch_size=16,devices=1" / "summary.json"
    one, two = (json.loads(file.read_text())["val_loss"] for file in (summary, there))
    assert one == two


def test_a_sweep_in_a_foreign_folder_is_refused(folder, finished):
    other = folder / "other.py"
    text = (folder / "members.py").read_text()
    other.write_text(text.replace("'steps': 20", "'steps': 21"))
    result = run(
        "sweep", f"--sweep={other}", f"--workdir={folder}/runs", check=False
    )  # fmt: skip
    assert result.returncode == 2 and "holds another sweep" in result.stderr


def test_report_of_nothing(tmp_path):
    result = run("report", tmp_path, check=False)
    assert result.returncode == 2 and "holds no sweep.json" in result.stderr
    result = run("report", check=False)
    assert result.returncode == 2 and "give the folder of a sweep" in result.stderr
