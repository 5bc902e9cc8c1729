"""Pipeline schedules: what each stage does in each tick, computed before anything runs.

A schedule is a table. In each tick a stage runs the forward or the backward pass of one
microbatch through one of its chunks of layers, or is idle. Its result arrives at another
stage before the next tick.

A schedule is made in two steps. An *order* lists the work of each stage in sequence,
without times. Then each piece of work gets the first tick in which the work before it on
the list is done and its inputs have arrived.

  gpipe        all forwards, then all backwards (Huang et al. 2019)
  1f1b         just enough forwards to fill the pipeline, then one forward and one backward
               in turns (PipeDream-flush: Narayanan et al. 2021a)
  interleaved  1f1b with v chunks on each stage, which divides the bubble by v (Narayanan et
               al. 2021b); chunk c of stage s comes at place c * p + s in the model

Letters: p stages, m microbatches, v chunks a stage.
"""

from typing import NamedTuple

import numpy as np

IDLE, FORWARD, BACKWARD = 0, 1, 2
NOWHERE = -1  # a slot that is not used

Work = tuple[int, int, int]  # FORWARD or BACKWARD, microbatch, chunk


class Tables(NamedTuple):
    """What each stage does in each tick, int32[ticks, p].

    A stage has a buffer for inputs and a buffer for gradients; the places in a buffer are
    its slots. NOWHERE stands for no slot.
    """

    op: np.ndarray  # IDLE, FORWARD or BACKWARD
    microbatch: np.ndarray
    chunk: np.ndarray
    input: np.ndarray  # slot of the input of the chunk; read forward and backward
    grad: np.ndarray  # slot of the gradient of its output; read backward
    input_arrives: np.ndarray  # slot for the input that arrives at the end of this tick
    grad_arrives: np.ndarray  # slot for the gradient that arrives at the end of this tick


class Schedule(NamedTuple):
    tables: Tables
    num_inputs: int  # slots for inputs
    num_grads: int  # slots for gradients
    num_chunks: int
    num_microbatches: int

    @property
    def num_stages(self) -> int:
        return self.tables.op.shape[1]

    @property
    def num_ticks(self) -> int:
        return self.tables.op.shape[0]


def gpipe(num_stages: int, num_microbatches: int, num_chunks: int = 1) -> list[list[Work]]:
    """List all forwards, then all backwards, for each stage."""
    forwards = [(FORWARD, i, 0) for i in range(num_microbatches)]
    backwards = [(BACKWARD, i, 0) for i in range(num_microbatches)]
    return [forwards + backwards] * num_stages


def one_forward_one_backward(
    num_stages: int, num_microbatches: int, num_chunks: int = 1
) -> list[list[Work]]:
    """List the work of 1f1b: a stage is ahead by the number of stages after it."""
    forwards = [(FORWARD, i, 0) for i in range(num_microbatches)]
    backwards = [(BACKWARD, i, 0) for i in range(num_microbatches)]
    return [
        in_turns(forwards, backwards, num_stages - stage - 1) for stage in range(num_stages)
    ]


def interleaved(
    num_stages: int, num_microbatches: int, num_chunks: int
) -> list[list[Work]]:
    """List the work of 1f1b with several chunks on each stage.

    A group of p microbatches goes through one chunk, then the same group through the next.
    """
    p, m, v = num_stages, num_microbatches, num_chunks
    if m % p:
        raise ValueError(
            f"parallel.accumulation {m} microbatches are not divisible by parallel.stage "
            f"{p}, as interleaving needs; change one of them, or take strategy '1f1b'"
        )
    groups = range(0, m, p)
    forwards = [
        (FORWARD, first + i, c) for first in groups for c in range(v) for i in range(p)
    ]
    # Backward, groups come in the same order, but go from the last chunk to the first.
    backwards = [(BACKWARD, i, v - 1 - c) for _, i, c in forwards]
    # The first backward of a group can begin when it is through all chunks on all stages.
    return [
        in_turns(forwards, backwards, 2 * (p - stage - 1) + (v - 1) * p)
        for stage in range(p)
    ]


def in_turns(forwards: list[Work], backwards: list[Work], ahead: int) -> list[Work]:
    """List `ahead` forwards, then a forward and a backward in turns, then the rest."""
    ahead = min(ahead, len(forwards))
    order = list(forwards[:ahead])
    for forward, backward in zip(forwards[ahead:], backwards, strict=False):
        order += [forward, backward]
    return order + backwards[len(forwards) - ahead :]


ORDERS = {"gpipe": gpipe, "1f1b": one_forward_one_backward, "interleaved": interleaved}


def build_schedule(
    name: str, num_stages: int, num_microbatches: int, num_chunks: int = 1
) -> Schedule:
    """Make the schedule `name`, one of ORDERS.

    Raises ValueError if it is interleaved and p does not divide the microbatches.
    """
    if name != "interleaved":
        num_chunks = 1
    orders = ORDERS[name](num_stages, num_microbatches, num_chunks)
    return allot(ticks_of(orders, num_chunks), orders, num_chunks)


def needs(work: Work, stage: int, num_stages: int, num_chunks: int) -> tuple | None:
    """Return the (stage, work) whose result this work needs.

    None: a forward pass through the first chunk of the model needs only the batch.
    """
    op, microbatch, chunk = work
    # Places number the chunks of all stages in the order of the model.
    place, last = chunk * num_stages + stage, num_stages * num_chunks - 1
    if op == FORWARD:
        if place == 0:
            return None
        place -= 1
    elif place == last:
        return stage, (FORWARD, microbatch, chunk)
    else:
        place += 1
    return place % num_stages, (op, microbatch, place // num_stages)


def ticks_of(orders: list[list[Work]], num_chunks: int) -> list[dict[Work, int]]:
    """Return the tick of each stage's work: as early as its order and its needs allow."""
    num_stages = len(orders)
    done: list[dict[Work, int]] = [{} for _ in orders]
    tick = 0
    while any(len(d) < len(order) for d, order in zip(done, orders, strict=True)):
        # First find all the work that can be done in this tick, then mark it as done: no
        # result of this tick can be used before the next.
        ready = []
        for stage, order in enumerate(orders):
            if len(done[stage]) == len(order):
                continue
            work = order[len(done[stage])]
            needed = needs(work, stage, num_stages, num_chunks)
            if needed is None or needed[1] in done[needed[0]]:
                ready.append((stage, work))
        if not ready:
            raise AssertionError("the orders of the stages wait for each other")
        for stage, work in ready:
            done[stage][work] = tick
        tick += 1
    return done


def allot(
    ticks: list[dict[Work, int]], orders: list[list[Work]], num_chunks: int
) -> Schedule:
    """Write the tables; give a slot to each array that waits at a stage."""
    num_stages = len(orders)
    num_ticks = 1 + max(max(done.values()) for done in ticks)
    tables = {name: np.full((num_ticks, num_stages), NOWHERE, np.int32) for name in (
        "input", "grad", "input_arrives", "grad_arrives"
    )}  # fmt: skip
    tables |= {
        name: np.zeros((num_ticks, num_stages), np.int32)
        for name in ("op", "microbatch", "chunk")
    }
    num_slots = {"input": 0, "grad": 0}
    for stage, done in enumerate(ticks):
        # An input waits from its arrival to its backward pass, which needs it again. A
        # gradient waits from its arrival to the same backward pass.
        stays: dict[str, list] = {"input": [], "grad": []}  # (arrives, last use, work)
        for work, tick in done.items():
            for name, value in zip(("op", "microbatch", "chunk"), work, strict=True):
                tables[name][tick, stage] = value
            needed = needs(work, stage, num_stages, num_chunks)
            if needed is None or (needed[0] == stage and needed[1][0] != work[0]):
                continue  # nothing arrives: the batch or the loss gives what is needed
            arrives = ticks[needed[0]][needed[1]]
            kind = "input" if work[0] == FORWARD else "grad"
            stays[kind].append((arrives, done[BACKWARD, *work[1:]], work))
        for kind, intervals in stays.items():
            slots = colour(intervals)
            for (arrives, _, work), slot in zip(sorted(intervals), slots, strict=True):
                tables[kind + "_arrives"][arrives, stage] = slot
                for op in (FORWARD, BACKWARD) if kind == "input" else (BACKWARD,):
                    tables[kind][done[op, *work[1:]], stage] = slot
            num_slots[kind] = max([num_slots[kind], *(slot + 1 for slot in slots)])
    return Schedule(
        Tables(**tables),
        num_inputs=num_slots["input"],
        num_grads=num_slots["grad"],
        num_chunks=num_chunks,
        num_microbatches=len(orders[0]) // (2 * num_chunks),
    )


def colour(intervals: list[tuple[int, int, Work]]) -> list[int]:
    """Return a slot for each (arrives, last use, work), in the order of arrival.

    An array takes the first slot that is free when it arrives (interval colouring).
    """
    busy_until: list[int] = []
    slots = []
    for arrives, last_use, _ in sorted(intervals):
        # A slot that is read in a tick may be overwritten at the end of that tick.
        free = (i for i, until in enumerate(busy_until) if until <= arrives)
        slot = next(free, len(busy_until))
        busy_until[slot : slot + 1] = [last_use]
        slots.append(slot)
    return slots


def bubble(schedule: Schedule, forward: float = 1.0, backward: float = 1.0) -> float:
    """Return the share of device time that is idle if all wait for a tick's slowest pass.

    `forward` and `backward` are the costs of a pass through one chunk. A backward pass
    costs as much as 2 forward passes, or 3 if it runs the forward pass again. With both
    costs at 1 the result is the share of idle entries in the table.
    """
    cost = np.array([0.0, forward, backward])[schedule.tables.op]
    return 1 - cost.sum() / (cost.max(1).sum() * schedule.num_stages)


def free_running_bubble(
    schedule: Schedule, forward: float = 1.0, backward: float = 1.0
) -> float:
    """Return the share of device time that is idle if stages wait only for their inputs."""
    p, v = schedule.num_stages, schedule.num_chunks
    cost, end = (0.0, forward, backward), {}
    clocks = [0.0] * p
    for tick, stage in np.argwhere(schedule.tables.op != IDLE):
        work = tuple(int(table[tick, stage]) for table in schedule.tables[:3])
        needed = needs(work, int(stage), p, v)
        start = max(clocks[stage], end[needed] if needed else 0.0)
        clocks[stage] = end[int(stage), work] = start + cost[work[0]]
    busy = np.array(cost)[schedule.tables.op].sum()
    return 1 - busy / (max(clocks) * p)


def ideal_bubble(num_stages: int, num_microbatches: int, num_chunks: int = 1) -> float:
    """Return (p - 1) / (v m + p - 1), the bubble as the papers give it."""
    p, m, v = num_stages, num_microbatches, num_chunks
    return (p - 1) / (v * m + p - 1)


def promised_inputs(
    name: str, num_stages: int, num_microbatches: int, num_chunks: int
) -> int:
    """Return the most inputs of chunks that a stage keeps at once.

    gpipe keeps all m, 1f1b min(m, p). With interleaving the first stage keeps the most: it
    runs 2 (p - 1) + (v - 1) p forwards before the turns begin, and keeps their inputs and
    one more, but never more than all v m.
    """
    p, m, v = num_stages, num_microbatches, num_chunks
    if name == "gpipe":
        return m
    if name == "1f1b":
        return min(m, p)
    return min(v * m, 2 * (p - 1) + (v - 1) * p + 1)
