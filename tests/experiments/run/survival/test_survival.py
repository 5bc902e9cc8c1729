"""Two processes that meet faults end as those that meet none, to the bit."""

import json
import pathlib
import signal
import subprocess
import time

import pytest

from tests.experiments.runs import ROOT, command, losses, small, write_corpus

FAULTS = """
from experiments.processes.faults import *

def get_faults():
    return [
        FullDisk(AtStep(3)),
        Stop(AtStep(6), process=1),
        Slow(AtStep(7), process=0, seconds=0.1, steps=2),
        FlippedParameter(AtStep(8), device=1, leaf=2, element=7, bit=11),
    ]
"""
DEADLINE = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survival")
    write_corpus(folder / "corpus")
    (folder / "faults.py").write_text(FAULTS)
    return folder


def launched(folder: pathlib.Path, name: str, *flags: str) -> list[str]:
    """Return the command of two processes, each with a device."""
    given = small(folder, deadline=DEADLINE, check_every=2, eval_every=0)
    mine = [f for f in flags if f.startswith("--restarts")]
    theirs = [f for f in flags if f not in mine]
    return command(
        "launch", "--processes=2", *mine, "--", *given, f"--workdir={folder}/{name}",
        *theirs,
    )  # fmt: skip


def start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def final_bytes(workdir: pathlib.Path) -> dict[str, int]:
    """Return the digests of all parts of the last checkpoint."""
    from orbax.checkpoint import v1 as ocp

    with ocp.training.Checkpointer(workdir / "checkpoints") as saved:
        return saved.checkpointables_metadata(12).custom_metadata


def test_all_faults_are_survived_bitwise(folder):
    faulty = start(
        launched(folder, "faulty", "--restarts=2", f"--faults={folder}/faults.py")
    )
    stderr = faulty.communicate(timeout=300)[1]
    assert faulty.returncode == 0, stderr[-3000:]
    for words in (
        "the checkpoint at step 4 could not be written ([Errno 28] No space",
        "process 0 has waited",
        f"the deadline of {DEADLINE} s; it waits for process 1, which is stopped",
        "process 0 of 2 ended with exit code 4",
        "step 8: replicas have parted in params/",
        "the 2 copies differ, on device 0 (process 0), device",
        "going on from the checkpoint at step 6",
    ):
        assert words in stderr, stderr[-6000:]
    check_log(folder)
    check_goodput(folder)
    terminated_and_continued(folder)
    assert losses(folder / "faulty") == losses(folder / "plain")
    assert len(losses(folder / "faulty")) == 12
    assert final_bytes(folder / "faulty") == final_bytes(folder / "plain")


def terminated_and_continued(folder: pathlib.Path) -> None:
    """SIGTERM of the launcher lets both processes save at one step and end."""
    plain = start(launched(folder, "plain"))
    metrics = folder / "plain" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert plain.poll() is None
        time.sleep(0.05)
    plain.send_signal(signal.SIGTERM)
    stderr = plain.communicate(timeout=120)[1]
    assert plain.returncode == 0, stderr[-3000:]
    if "stopped at step" in stderr:
        assert start(launched(folder, "plain")).wait(timeout=120) == 0
    else:  # the signal came in the last step
        assert 12 in losses(folder / "plain")


def check_log(folder: pathlib.Path) -> None:
    """Each fault once, in order, and nothing of the moment."""
    lines = (folder / "faulty" / "faults.jsonl").read_text().splitlines()
    kinds = ["full_disk", "stop", "slow", "flipped_parameter"]
    logged = [json.loads(line) for line in lines]
    assert [line["kind"] for line in logged] == kinds
    assert [line["number"] for line in logged] == [0, 1, 2, 3]
    assert logged[3] == {
        "number": 3, "kind": "flipped_parameter", "step": 8, "device": 1, "leaf": 2,
        "element": 7, "bit": 11,
    }  # fmt: skip


def check_goodput(folder: pathlib.Path) -> None:
    """Two restarts; the seconds are those from the first clock to the last."""
    goodput = json.loads((folder / "faulty" / "summary.json").read_text())["goodput"]
    events = [
        json.loads(line)
        for line in (folder / "faulty" / "time.jsonl").read_text().splitlines()
    ]
    starts = [each for each in events if each["event"] == "start"]
    assert [each["step"] for each in starts] == [0, 2, 6]
    done = next(each for each in events if each["event"] == "done")
    whole = done["wall"] + done["elapsed"] - events[0]["wall"]
    assert abs(sum(goodput["seconds"].values()) - whole) < 1e-3 * whole
    assert goodput["seconds"]["lost"] > DEADLINE  # the wait for the stopped process
    assert all(seconds >= 0 for seconds in goodput["seconds"].values()), goodput
