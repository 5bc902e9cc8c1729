"""All seconds of a run, restarts included, against timelines added up by hand."""

import json
import time

from experiments.processes.files import whole_records
from experiments.run.survival.clock import Clock
from experiments.run.survival.goodput import Journal, account, told


def event(name, at, wall, elapsed, **seconds):
    return {
        "event": name, "step": at, "wall": wall, "elapsed": elapsed, "seconds": seconds
    }  # fmt: skip


# Began at 100 s; restored nothing; killed at 130 s, 8 s after the save of step 20.
FIRST = [
    event("start", 0, 100.0, 5.0, compile=4.0),
    event("saved", 10, 100.0, 14.0, compile=4.0, step=7.0, checkpoint=1.0),
    event("saved", 20, 100.0, 22.0, compile=4.0, step=13.0, checkpoint=2.0),
    event("last", 27, 100.0, 30.0, compile=4.0, step=20.0, checkpoint=2.0),
]
# Began at 140 s, went on from step 20 at 143 s, ended by itself at 150 s.
SECOND = [
    event("start", 20, 140.0, 3.0, compile=2.0, checkpoint=0.5),
    event("end", 30, 140.0, 10.0, compile=2.0, checkpoint=1.5, step=5.0),
]


def test_a_run_that_was_killed_once():
    spent = account(FIRST + SECOND)
    assert spent == {
        "compile": 4.0,
        "step": 13.0 + 5.0,
        "checkpoint": 2.0 + 1.0,
        "other": 3.0 + 1.0,
        "lost": 8.0,
        "restart": 10.0 + 3.0,
    }
    assert sum(spent.values()) == 150.0 - 100.0


def test_work_is_lost_that_an_earlier_process_did():
    """The checkpoint of step 20 turns out to be damaged: the run goes back to step 10."""
    second = [
        event("start", 20, 140.0, 3.0),
        event("last", 24, 140.0, 9.0, step=6.0),
    ]
    third = [event("start", 10, 150.0, 2.0), event("end", 30, 150.0, 20.0, step=18.0)]
    spent = account(FIRST + second + third)
    assert spent["lost"] == (30.0 - 14.0) + (9.0 - 3.0)
    assert spent["step"] == 7.0 + 18.0
    assert spent["restart"] == (10.0 + 3.0) + (1.0 + 2.0)
    assert sum(spent.values()) == 170.0 - 100.0


def test_between_an_end_and_the_next_command_nothing_runs():
    ended = [event("start", 0, 0.0, 1.0), event("end", 5, 0.0, 9.0, step=8.0)]
    later = [event("start", 5, 1e6, 2.0), event("end", 9, 1e6, 6.0, step=4.0)]
    spent = account(ended + later)
    assert sum(spent.values()) == 9.0 + 6.0
    assert (spent["lost"], spent["restart"], spent["step"]) == (0.0, 2.0, 12.0)


def test_phases_of_one_process_are_one_life():
    """Between them it compiles: nothing is lost, and nothing was started again."""
    events = [
        event("start", 0, 5.0, 1.0, compile=1.0),
        event("end", 5, 5.0, 9.0, compile=1.0, step=8.0),
        event("start", 5, 5.0, 12.0, compile=4.0, step=8.0),
        event("last", 8, 5.0, 15.0, compile=4.0, step=11.0),
    ]
    again = [event("start", 5, 30.0, 2.0), event("end", 9, 30.0, 8.0, step=6.0)]
    spent = account(events + again)
    assert sum(spent.values()) == 38.0 - 5.0
    assert (spent["compile"], spent["step"]) == (4.0, 8.0 + 6.0)
    assert (spent["lost"], spent["restart"]) == (3.0, 10.0 + 2.0)


def test_the_journal_of_a_killed_process_ends_with_its_last_heartbeat(tmp_path):
    (tmp_path / "heartbeats").mkdir()
    for name in ("first", "second"):
        clock = Clock()
        journal = Journal(tmp_path, clock, write=True)
        journal.begin(0)
        with clock("step"):
            time.sleep(0.05)
        beat = {"step": 3, "part": "step", "wall": clock.wall} | clock.told()
        (tmp_path / "heartbeats" / "0.json").write_text(json.dumps(beat))
        if name == "second":
            journal.mark("end", 4)
    events = whole_records(tmp_path / "time.jsonl")
    assert [x["event"] for x in events] == ["start", "last", "start", "end"]
    found = told(tmp_path)
    whole = clock.wall + clock.told()["elapsed"] - events[0]["wall"]
    assert abs(found["total"] - whole) < 1e-3 * whole + 2e-3
    assert found["seconds"]["lost"] >= 0.05 and found["seconds"]["step"] >= 0.05
    assert found["step_share"] == found["seconds"]["step"] / found["total"]


def test_a_mark_may_be_later_than_the_last_heartbeat(tmp_path):
    (tmp_path / "heartbeats").mkdir()
    clock = Clock()
    journal = Journal(tmp_path, clock, write=True)
    journal.begin(0)
    beat = {"step": 3, "part": "step", "wall": clock.wall} | clock.told()
    (tmp_path / "heartbeats" / "0.json").write_text(json.dumps(beat))
    time.sleep(0.01)
    journal.mark("saved", 4)
    Journal(tmp_path, Clock(), write=True).begin(4)
    saved, last = whole_records(tmp_path / "time.jsonl")[1:3]
    assert last == saved | {"event": "last"} and last["elapsed"] > beat["elapsed"]
    assert told(tmp_path)["seconds"]["lost"] == 0.0
