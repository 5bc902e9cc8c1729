"""Faults as values: the same of the same seed, and none that cannot be."""

import re

import numpy as np
import pytest

from experiments.processes.faults import (
    KINDS,
    AtSeconds,
    AtStep,
    CorruptRecord,
    Drawn,
    FlippedGradient,
    FlippedParameter,
    FullDisk,
    Kill,
    Setting,
    as_dict,
    planned,
)

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


def test_a_line_of_the_log_is_the_fault():
    fault = FlippedParameter(AtStep(12), device=3, leaf=1, element=5, bit=20)
    assert as_dict(4, fault) == {
        "number": 4, "kind": "flipped_parameter", "step": 12, "device": 3, "leaf": 1,
        "element": 5, "bit": 20,
    }  # fmt: skip
    assert as_dict(0, Kill(AtSeconds(1.5)))["seconds"] == 1.5


def test_a_fault_that_cannot_be_is_refused():
    for fault, words in [
        ("kill", "get_faults() returns 'kill', which is no fault; expected values of Kill"),
        (Kill(AtStep(3), process=3), "no process 3; the run has 3, numbered from 0"),
        (FlippedParameter(AtStep(3), device=6), "no device 6; the run has 6"),
        (CorruptRecord(AtStep(3), record=-1), "no record -1; the run has 50"),
        (Kill(AtStep(0)), "`at` must be AtStep or AtSeconds of a positive number"),
        (Kill(7), "`at` must be AtStep or AtSeconds"),
        (FlippedGradient(AtStep(2), row=8), "no row 8; the run has 8"),
        (FullDisk(AtSeconds(3.0)), "so `at` must be AtStep, not AtSeconds"),
        (Drawn(("kill", "flood"), 3, AtStep(2), 0), "no kind of fault 'flood'; choose of"),
    ]:
        with pytest.raises(ValueError, match=re.escape(words)):
            planned([fault], SETTING)
