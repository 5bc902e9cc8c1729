"""Faults as values: the same of the same seed, and none that cannot be."""

import re

import numpy as np
import pytest

from experiments.processes.fault_plans import as_dict, planned, ways
from experiments.processes.faults import (
    BAD,
    KINDS,
    AtSeconds,
    AtStep,
    BadLink,
    CorruptRecord,
    DeadLink,
    Drawn,
    FlippedGradient,
    FlippedParameter,
    FullDisk,
    Kill,
    Partition,
    Setting,
    Slow,
    Stop,
)
from experiments.processes.network.link import Link

SETTING = Setting(num_processes=3, num_devices=6, num_records=50, batch_size=8)


def test_drawn_faults_are_a_function_of_the_seed():
    spec = Drawn(tuple(KINDS), 2000, AtStep(20), seed=5)
    plan = planned([spec], SETTING)
    assert plan == planned([spec], SETTING)
    assert plan[:7] == planned([Drawn(tuple(KINDS), 7, AtStep(20), 5)], SETTING)
    assert plan != planned([Drawn(tuple(KINDS), 2000, AtStep(20), 6)], SETTING)
    steps = np.array([fault.at.step for fault in plan])
    gaps = np.diff(steps)
    assert (gaps >= 0).all() and steps[0] >= 2
    # 2000 exponential gaps: mean 20, standard error 20 / sqrt(2000).
    assert abs(gaps.mean() - 20) < 4 * 20 / np.sqrt(2000)
    counts = [sum(type(f) is kind for f in plan) for kind in KINDS.values()]
    expected = 2000 / len(KINDS)
    assert max(abs(n - expected) for n in counts) < 5 * np.sqrt(expected)
    assert {fault.process for fault in plan if isinstance(fault, Kill)} == {0, 1, 2}
    bad = [fault for fault in plan if isinstance(fault, BadLink)]
    assert {fault.link for fault in bad} == set(BAD)
    assert {fault.between for fault in bad} == {
        (a, b) for a in range(3) for b in range(3) if a != b
    }
    groups = {frozenset(fault.group) for fault in plan if isinstance(fault, Partition)}
    assert {len(group) for group in groups} == {1, 2} and len(groups) == 6


def test_which_directions_a_fault_of_a_link_hits():
    at = AtStep(2)
    assert ways(BadLink(at, between=(2, 0)), 3) == [(2, 0), (0, 2)]
    assert ways(DeadLink(at, between=(2, 0), one_way=True), 3) == [(2, 0)]
    expected = {(0, 1), (1, 0), (2, 1), (1, 2), (0, 3), (3, 0), (2, 3), (3, 2)}
    assert set(ways(Partition(at, group=(0, 2)), 4)) == expected


def test_a_line_of_the_log_is_the_fault():
    fault = FlippedParameter(AtStep(12), device=3, leaf=1, element=5, bit=20)
    assert as_dict(4, fault) == {
        "number": 4, "kind": "flipped_parameter", "step": 12, "device": 3, "leaf": 1,
        "element": 5, "bit": 20,
    }  # fmt: skip
    assert as_dict(0, Kill(AtSeconds(1.5)))["seconds"] == 1.5
    assert as_dict(1, BadLink(AtStep(2), link=Link(loss=0.1))) == {
        "number": 1, "kind": "bad_link", "step": 2, "between": (0, 1), "one_way": False,
        "seconds": 3.0, "link": {"loss": 0.1},
    }  # fmt: skip


def test_a_fault_that_cannot_be_is_refused():
    for fault, words in [
        ("kill", "get_faults() returns 'kill', which is no fault; expected values of Kill"),
        (Kill(AtStep(3), process=3), "no process 3; the run has 3, numbered from 0"),
        (FlippedParameter(AtStep(3), device=6), "no device 6; the run has 6"),
        (CorruptRecord(AtStep(3), record=-1), "no record -1; the run has 50"),
        (Kill(AtStep(0)), "`at` must be AtStep or AtSeconds of a positive number"),
        (Kill(7), "`at` must be AtStep or AtSeconds"),
        (FlippedGradient(AtStep(2), row=8), "no row 8; the run has 8"),
        (Kill(AtStep(2.5)), "`at` must be AtStep or AtSeconds of a positive number"),
        (Kill(AtSeconds("3")), "`at` must be AtStep or AtSeconds of a positive number"),
        (FullDisk(AtSeconds(3.0)), "so `at` must be AtStep, not AtSeconds"),
        (DeadLink(AtStep(2), between=(0, 3)), "no link between (0, 3); the run has 3"),
        (BadLink(AtStep(2), between=(1, 1)), "no link between (1, 1)"),
        (BadLink(AtStep(2), seconds=-1), "seconds -1 is not a number from 0 up"),
        (Slow(AtStep(2), seconds=-0.5), "seconds -0.5 is not a number from 0 up"),
        (Slow(AtStep(2), steps=0), "steps 0 is not a number from 1 up"),
        (Stop(AtStep(2), seconds="3"), "seconds is '3'; expected a float"),
        (Kill(AtStep(2), process="1"), "process is '1'; expected a int"),
        (BadLink(AtStep(2), link=0.1), "link is 0.1; expected a Link"),
        (Partition(AtStep(2), group=1), "group is 1; expected a tuple"),
        (Partition(AtStep(2), group=(0, 1, 2)), "must hold some and not all of the proc"),
        (Drawn(("kill", "flood"), 3, AtStep(2), 0), "no kind of fault 'flood'; choose of"),
        (Drawn((), 3, AtStep(2), 0), "kinds is empty; choose of kill, stop"),
        (Drawn(("kill",), 3, 40, 0), "`every` must be AtStep or AtSeconds of a pos"),
        (Drawn(("kill",), 0, AtStep(2), 0), "number 0 is not a whole number from 1 up"),
        (Drawn(("kill",), 1, AtStep(2), -1), "seed -1 is not a whole number from 0 up"),
    ]:
        with pytest.raises(ValueError, match=re.escape(words)):
            planned([fault], SETTING)
    with pytest.raises(ValueError, match="faults of links, and the run has 1 process"):
        planned([Drawn(("partition",), 1, AtStep(2), 0)], Setting(1, 1, 9, 9))
