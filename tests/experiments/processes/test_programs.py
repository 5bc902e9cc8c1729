"""Compiled programs are kept, and every process of a machine finds them."""

import json

from tests.parallel.workers import run_two


def test_a_program_that_is_kept_is_compiled_by_no_process(tmp_path):
    told = []
    for _ in range(2):
        outputs = run_two("program_worker", str(tmp_path / "cache"))
        told.append([json.loads(output.splitlines()[-1]) for output in outputs])
    for processes in told:
        assert [one["total"] for one in processes] == [sum(n**2 for n in range(64))] * 2
        assert [one["alone"] for one in processes] == [[1.0] * 3, [2.0] * 3]
    first, second = told
    # Not of all: a process that is late finds what the other has just kept.
    assert any("jit_squares" in one["compiled"] for one in first)
    assert not any("jit_squares" in one["compiled"] for one in second)
