"""Copies of the state in the memory of another host, from which a run goes on.

All processes of a run die together, for a collective needs them all. But their launcher
lives, and its holders (experiments/processes/channel/holder.py) with it. So each process
sends its own parts of the state, every few steps, to the holder of the next host. After a
restart, the newest step of which all processes find a whole copy counts, if it is newer
than the checkpoint. A copy has the parts as the devices hold them: it serves the same
strategy on the same devices, and another layout goes back to the checkpoint.
"""

import json
import os
import struct
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
from jax.experimental import multihost_utils

from configs.base import Experiment
from experiments.processes.channel.frames import Address, ask
from experiments.processes.channel.holder import KEPT, NAME
from experiments.processes.messages import say
from parallel.program import Program, TrainState

SIZE = struct.Struct(">Q")
Place = tuple[int, tuple[int, ...]]  # the number of a leaf, where a part of it begins


class Copies:
    """Keeps copies while it is entered; does nothing if no launcher holds any."""

    def __init__(self, index: int, changed: Callable[[bytes], bytes] = bytes):
        self.every, holders = settings()
        self.index, self.changed = index, changed
        self.holder: Address = holders[(index + 1) % len(holders)] if holders else ("", 0)
        self.pool = ThreadPoolExecutor(1)
        self.sent: Future[None] | None = None
        self.taken: int | None = None  # the step that the run goes on from

    def __enter__(self) -> "Copies":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.pool.shutdown(wait=error is None, cancel_futures=True)

    def due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

    def keep(self, step: int, state: TrainState) -> None:
        """Begin to send the parts of this process; they are copied before this returns."""
        if self.sent:
            self.sent.result()  # all processes keep the same steps
        self.sent = self.pool.submit(self.send, step, packed(state))

    def send(self, step: int, payload: bytes) -> None:
        question = {"do": "put", "process": self.index, "step": step}
        try:
            ask(self.holder, question, payload, self.changed)
        except OSError as error:  # the run goes on; the checkpoint is still there
            say(f"warning: no copy of step {step} is held in memory ({error})")

    def newer(self, program: Program, state: TrainState | None) -> TrainState | None:
        """Return the newest copy of which all processes have their parts, if it is newer.

        All processes call this. `state` is that of the checkpoint, None without one.
        """
        if not self.every:
            return state
        at = int(state.step) if state else 0
        for step in reversed(common(self.steps())):
            if step > at and (found := self.load(step, program)):
                self.taken = step
                return found
        return state

    def steps(self) -> list[int]:
        try:
            return ask(self.holder, {"do": "steps", "process": self.index})[0]
        except OSError as error:
            say(f"warning: no copy in memory can be reached ({error})")
            return []

    def load(self, step: int, program: Program) -> TrainState | None:
        """Return a copy, or None in all processes if one of them has no whole one."""
        found = None
        try:
            question = {"do": "get", "process": self.index, "step": step}
            is_whole, payload = ask(self.holder, question)
            if is_whole:
                found = unpacked(payload, program.abstract)
        except (OSError, ValueError):
            pass
        mine = np.int32(found is not None)
        return found if np.min(multihost_utils.process_allgather(mine)) else None


def settings() -> tuple[int, list[Address]]:
    """Return the steps between copies (0: none) and the holders' addresses."""
    every, holders = json.loads(os.environ.get(NAME, "[0, []]"))
    return every, [(host, port) for host, port in holders]


def check_copies(config: Experiment) -> None:
    """Raise ValueError where --copies was given for a state that is not in this process."""
    if settings()[0] and not config.parallel.row.synchronous:
        raise ValueError(
            f"--copies: under strategy {config.parallel.strategy!r} the state lies on "
            "server shards, which have snapshots of their own; leave out --copies"
        )


def common(steps: list[int]) -> list[int]:
    """Return the steps of which every process has a copy, in order."""
    mine = np.full(KEPT, -1, np.int32)
    mine[: len(steps)] = steps
    table = np.atleast_2d(multihost_utils.process_allgather(mine)).tolist()
    shared = set.intersection(*map(set, table))
    return sorted(step for step in shared if step >= 0)


def packed(state: TrainState) -> bytes:
    """Return the parts that this process holds, each once: where it is, and its bytes."""
    parts: dict[Place, bytes] = {}
    for number, leaf in enumerate(jax.tree.leaves(state)):
        for shard in leaf.addressable_shards:
            place = number, starts(shard.index)
            if place not in parts:
                parts[place] = np.asarray(shard.data).tobytes()
    head = json.dumps([[*place, len(data)] for place, data in parts.items()]).encode()
    return b"".join([SIZE.pack(len(head)), head, *parts.values()])


def unpacked(payload: bytes, abstract: TrainState) -> TrainState:
    """Return the state that `packed` has read; ValueError if its parts are others."""
    (num,) = SIZE.unpack_from(payload)
    at, parts = SIZE.size + num, {}
    for number, begin, num_bytes in json.loads(payload[SIZE.size : at]):
        parts[number, tuple(begin)] = payload[at : at + num_bytes]
        at += num_bytes
    leaves, structure = jax.tree.flatten(abstract)
    wanted = {
        (number, starts(index))
        for number, like in enumerate(leaves)
        for index in like.sharding.addressable_devices_indices_map(like.shape).values()
    }
    if wanted != parts.keys():
        raise ValueError("the copy in memory has the parts of another layout")

    def part(number: int, like: jax.ShapeDtypeStruct, index: tuple[slice, ...]):
        shape = like.sharding.shard_shape(like.shape)
        flat = np.frombuffer(parts[number, starts(index)], like.dtype)
        return flat.reshape(shape).copy()  # of its own, so that a step may use its memory

    return structure.unflatten(
        jax.make_array_from_callback(
            like.shape, like.sharding, lambda index, n=n, like=like: part(n, like, index)
        )
        for n, like in enumerate(leaves)
    )


def starts(index: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(each.start or 0 for each in index)
