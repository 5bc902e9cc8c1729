"""For whom a process waits, as its watchdog tells it."""

import time

import jax

from experiments.run.survival import heart
from experiments.run.survival.clock import Clock
from experiments.run.survival.heart import Beat, Heart, report
from experiments.run.survival.waits import waited_for, within
from tests.parallel.toy import SGD, batches, toy_learner, toy_program

MINE = {"index": 0, "step": 7, "part": "step", "waited": 5.2, "deadline": 5.0, "every": 0.5}


def test_whom_it_names():
    fine, busy = Beat(7, "step", 0.4), Beat(7, "data", 0.3)
    for others, words in [
        ({1: fine, 2: Beat(6, "step", 4.1)}, "process 2, which is stopped, dead"),
        ({1: Beat(6, "step", 9.0), 2: Beat(6, "", 9.0)}, "process 1, 2, which is stopped"),
        ({1: fine, 2: busy}, "process 2, which lives and does not get on"),
        ({1: Beat(5, "step", 0.1), 2: fine}, "process 1, which lives and does not get on"),
        ({1: fine, 2: fine}, "a link: all other processes live"),
    ]:
        first, *rest = report(others=others, **MINE)
        assert f"it waits for {words}" in first
        assert "waited 5.2 s in the part 'step' after step 7" in first
        assert len(rest) == len(others) and "last finished step" in rest[0]


def test_in_what_it_may_wait():
    learner = toy_learner(SGD, loss_scale=1.0)
    program = toy_program("zero1", learner, data=4)
    batch = program.place(batches(1)[0])
    program = program._replace(step=program.step.lower(program.abstract, batch).compile())
    head, *lines = waited_for("step", program)
    assert "one of the step's" in head and len(lines) > 1
    # The gradients are summed before the parameters are gathered.
    kinds = [line.split()[1] for line in lines]
    assert kinds.index("reduce-scatter") < kinds.index("all-gather")
    assert all("over data of " in line for line in lines)
    one = program._replace(step=jax.jit(lambda x: x).lower(1.0).compile())
    assert waited_for("step", one) == [] == waited_for("data", program)
    assert "compares the copies" in waited_for("check", program)[0]
    assert waited_for("step", program._replace(step=len)) == []  # as under pmap
    assert within(0.05, lambda: time.sleep(1)) == within(9, lambda: list(1)) == []


def test_it_names_whom_before_it_reads_in_what(tmp_path, monkeypatch, capfd):
    ended, before = [], []
    monkeypatch.setattr(heart.os, "_exit", ended.append)
    monkeypatch.setattr(
        heart,
        "waited_for",
        lambda part, program: before.append(capfd.readouterr().err) or ["  in a sum"],
    )
    Heart(tmp_path, Clock(), 5.0, 0, 2).give_up(6.1)
    assert "process 0 has waited 6.1 s" in before[0] and ended == [heart.STUCK]
    assert capfd.readouterr().err == "  in a sum\n"


def test_each_reads_the_heartbeats_of_the_others(tmp_path):
    mine, other = (Heart(tmp_path, Clock(), 5.0, index, 2) for index in (0, 1))
    other.folder.mkdir()
    mine.look(10.0)
    assert mine.others(11.0) == {1: Beat(0, "not begun", 1.0)}
    other.step = 3
    with other.clock("data"):
        other.write()
    mine.look(12.0)
    mine.look(14.5)  # it has said no more
    assert mine.others(15.0) == {1: Beat(3, "data", 3.0)}
    other.write()
    mine.look(16.0)
    assert mine.others(16.25) == {1: Beat(3, "", 0.25)}
