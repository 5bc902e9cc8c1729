"""Two processes that meet faults end as those that meet none, to the bit."""

import itertools
import json
import pathlib
import signal
import subprocess
import time

import pytest

from experiments.processes import namespaces
from tests.experiments.runs import ROOT, command, losses, run, small, write_corpus

FAULTS = """
from experiments.processes.faults import *

def get_faults():
    return [
        FullDisk(AtStep(3)),
        Stop(AtStep(8), process=1),
        FlippedParameter(AtStep(10), device=1, leaf=2, element=7, bit=11),
        Slow(AtStep(11), process=0, seconds=1.0, steps=2),
        FlippedFrame(AtStep(2), process=1, bit=3),
        %s
    ]
"""
DEAD_LINK = "DeadLink(AtStep(6), one_way=True, seconds=0.2)"
LINKS = """
from experiments.processes.network.changes import Change
from experiments.processes.network.link import Link

def get_links():
    return [Change(Link(delay=0.001))]
"""
DEADLINE, STEPS = 4, 14
JOINED = not namespaces.lacking()  # by links that can be cut


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survival")
    write_corpus(folder / "corpus")
    (folder / "faults.py").write_text(FAULTS % (DEAD_LINK if JOINED else ""))
    (folder / "links.py").write_text(LINKS)
    return folder


def launched(folder: pathlib.Path) -> list[str]:
    """Return the command of two processes, each with a device, that meet faults."""
    links = [f"--links={folder}/links.py"] if JOINED else []
    return command(
        "launch", "--processes=2", "--restarts=2", "--copies=3", *links, "--",
        *flags(folder), f"--workdir={folder}/faulty", f"--faults={folder}/faults.py",
    )  # fmt: skip


def flags(folder: pathlib.Path) -> list[str]:
    return small(
        folder, deadline=DEADLINE, check_every=2, save_every=4, eval_every=0, steps=STEPS
    )


def start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def final_bytes(workdir: pathlib.Path) -> dict[str, int]:
    """Return the digests of all parts of the last checkpoint."""
    from orbax.checkpoint import v1 as ocp

    with ocp.training.Checkpointer(workdir / "checkpoints") as saved:
        return saved.checkpointables_metadata(STEPS).custom_metadata


def test_all_faults_are_survived_bitwise(folder):
    """The run that meets none has both of its devices in one process."""
    faulty = start(launched(folder))
    log = folder / "faulty" / "faults.jsonl"
    while not (log.exists() and '"slow"' in log.read_text()):  # it is the last one
        assert faulty.poll() is None, faulty.stderr.read()[-3000:]
        time.sleep(0.05)
    faulty.send_signal(signal.SIGTERM)
    stderr = faulty.communicate(timeout=120)[1]
    assert faulty.returncode == 0, stderr[-3000:]
    for words in (
        "the checkpoint at step 4 could not be written ([Errno 28] No space",
        " bytes is damaged; it is sent again",
        "process 0 has waited",
        f"the deadline of {DEADLINE} s; it waits for process 1, which is stopped",
        "all-reduce over data of f32",
        "process 0 of 2 ended with exit code 4",
        "going on from the copy in memory at step ",  # there is no checkpoint yet
        "step 10: replicas have parted in params/",
        "the 2 copies differ, on device 0 (process 0), device",
        "stopped at step ",  # by both processes
    ):
        assert words in stderr, stderr[-6000:]
    assert not JOINED or ": cut for 0.2 s" in stderr
    again = start(launched(folder))
    stderr = again.communicate(timeout=120)[1]
    assert again.returncode == 0, stderr[-3000:]
    check_log(folder)
    check_goodput(folder)
    run("train", *flags(folder), f"--workdir={folder}/plain", "--devices=2")
    assert losses(folder / "faulty") == losses(folder / "plain")
    assert len(losses(folder / "faulty")) == STEPS
    assert final_bytes(folder / "faulty") == final_bytes(folder / "plain")


def check_log(folder: pathlib.Path) -> None:
    """Each fault once, in order, and nothing of the moment."""
    lines = (folder / "faulty" / "faults.jsonl").read_text().splitlines()
    kinds = ["full_disk", "stop", "flipped_parameter", "slow"]
    logged = [json.loads(line) for line in lines]
    assert [line["number"] for line in logged if line["number"] < 4] == [0, 1, 2, 3]
    assert [line["kind"] for line in logged if line["number"] < 4] == kinds
    flip = next(line for line in logged if line["kind"] == "flipped_parameter")
    assert flip == {
        "number": 2, "kind": "flipped_parameter", "step": 10, "device": 1, "leaf": 2,
        "element": 7, "bit": 11,
    }  # fmt: skip
    if JOINED:
        assert logged[2] == {
            "number": 5, "kind": "dead_link", "step": 6, "between": [0, 1],
            "one_way": True, "seconds": 0.2,
        }  # fmt: skip


def check_goodput(folder: pathlib.Path) -> None:
    """The seconds are those from the first clock to the last, but for the time between."""
    goodput = json.loads((folder / "faulty" / "summary.json").read_text())["goodput"]
    events = [
        json.loads(line)
        for line in (folder / "faulty" / "time.jsonl").read_text().splitlines()
    ]
    starts = [each for each in events if each["event"] == "start"]
    *first, last = [each["step"] for each in starts]
    # A copy or a checkpoint of the step before the end may not have arrived in time.
    assert first[0] == 0 and first[1] in (3, 6) and first[2] in (6, 8, 9)
    assert len(first) == 3 and last in (11, 12, 13)
    (ended, again), done = (
        [(a, b) for a, b in itertools.pairwise(events) if a["event"] == "end"][0],
        next(each for each in events if each["event"] == "done"),
    )
    whole = ended["wall"] + ended["elapsed"] - events[0]["wall"]
    whole += done["wall"] + done["elapsed"] - again["wall"]
    assert abs(sum(goodput["seconds"].values()) - whole) < 1e-3 * whole
    assert goodput["seconds"]["lost"] > DEADLINE  # the wait for the stopped process
    assert all(seconds >= 0 for seconds in goodput["seconds"].values()), goodput
