"""Every schedule does all of the work once, in an order that works, as the papers say."""

import itertools

import numpy as np
import pytest

from parallel.pipeline.schedules import (
    BACKWARD,
    FORWARD,
    ORDERS,
    bubble,
    build_schedule,
    free_running_bubble,
    ideal_bubble,
    promised_inputs,
)

# (p stages, m microbatches, v chunks)
PLAIN = [(p, m, 1) for p in (1, 2, 3, 4, 8) for m in (1, 2, 6, 8, 24)]
SHAPES = dict.fromkeys(ORDERS, PLAIN) | {
    "interleaved": [(p, m, v) for p, m, _ in PLAIN if m % p == 0 for v in (1, 2, 3)]
}


def ticks(schedule) -> dict:
    """Map (op, microbatch, virtual stage) -> tick; work done twice is an error."""
    found = {}
    tables = schedule.tables
    for tick, stage in np.argwhere(tables.op):
        op, microbatch, chunk = (int(table[tick, stage]) for table in tables[:3])
        work = op, microbatch, chunk * schedule.num_stages + int(stage)
        assert work not in found
        found[work] = int(tick)
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_all_work_is_done_once_after_what_it_needs(name):
    for p, m, v in SHAPES[name]:
        found = ticks(build_schedule(name, p, m, v))
        every = itertools.product((FORWARD, BACKWARD), range(m), range(p * v))
        assert set(found) == set(every)
        for (op, i, k), tick in found.items():
            if op == FORWARD and k > 0:
                assert found[FORWARD, i, k - 1] < tick
            if op == BACKWARD:
                assert found[FORWARD, i, k] < tick
                assert k == p * v - 1 or found[BACKWARD, i, k + 1] < tick


@pytest.mark.parametrize("name", SHAPES)
def test_ticks_and_bubble_are_those_of_the_papers(name):
    for p, m, v in SHAPES[name]:
        schedule = build_schedule(name, p, m, v)
        assert schedule.num_ticks == 2 * (v * m + p - 1)
        assert bubble(schedule) == pytest.approx(ideal_bubble(p, m, v))
        # What a stage waits for depends on the costs, but not how long in all.
        for cost in (2.0, 3.0):
            free = free_running_bubble(schedule, 1.0, cost)
            assert free == pytest.approx(ideal_bubble(p, m, v))


def test_ticks_that_mix_passes_wait_for_the_slower():
    """In step, only GPipe keeps its bubble where a backward pass costs more."""
    for name in ORDERS:
        schedule = build_schedule(name, 4, 8, 1)
        equal, costly = bubble(schedule), bubble(schedule, 1.0, 3.0)
        assert costly == pytest.approx(equal) if name == "gpipe" else costly > equal


def replay(schedule, p: int, v: int) -> None:
    """Go through the ticks with the buffers: each read finds what was sent for it."""
    tables = schedule.tables
    inputs = [[None] * schedule.num_inputs for _ in range(p)]
    grads = [[None] * schedule.num_grads for _ in range(p)]
    for tick in range(schedule.num_ticks):
        sent = []
        for s in range(p):
            op, i, c, reads, reads_grad = (int(t[tick, s]) for t in tables[:5])
            k = c * p + s
            if op and k > 0:
                assert inputs[s][reads] == (i, k)
            if op == BACKWARD and k < p * v - 1:
                assert grads[s][reads_grad] == (i, k)
            if op == FORWARD and k < p * v - 1:
                sent.append((inputs, (s + 1) % p, tables.input_arrives, (i, k + 1)))
            if op == BACKWARD and k > 0:
                sent.append((grads, (s - 1) % p, tables.grad_arrives, (i, k - 1)))
        for buffers, target, arrives, value in sent:
            buffers[target][arrives[tick, target]] = value


@pytest.mark.parametrize("name", SHAPES)
def test_slots_hold_what_is_read_and_are_as_few_as_promised(name):
    for p, m, v in SHAPES[name]:
        schedule = build_schedule(name, p, m, v)
        replay(schedule, p, v)
        assert schedule.num_inputs <= promised_inputs(name, p, m, v)
        if p > 1 and name != "interleaved":
            assert schedule.num_inputs == promised_inputs(name, p, m, v)


def test_interleaving_wants_groups_of_as_many_microbatches_as_stages():
    with pytest.raises(ValueError, match="accumulation 6 .*stage 4"):
        build_schedule("interleaved", 4, 6, 2)
