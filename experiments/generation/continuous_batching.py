"""Continuous batching: many prompts spread over the devices, slots refilled as texts end.

A device has slots, each with room for the cache of one text. A *turn* adds some tokens to
the text of every slot. After a turn, finished texts leave their slots, and the longest
waiting prompts take the free slots (iteration-level scheduling, Yu et al. 2022, Orca, 3.1;
longest first, Graham 1969). A prompt is read in chunks of one size, so prompts of all
lengths share one program.

Devices exchange only the sampled tokens. Every process sees all sampled tokens and makes
the same decisions, so a text can take a free slot on any device. The randomness of a text
depends on its index alone, so the text equals that of lm.decoding.generate.

Shapes: D devices, R slots of all devices, C tokens of a chunk, S source, V vocabulary,
N tokens of a turn.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from lm.decoding import (
    Sampling,
    Texts,
    advance,
    begin_texts,
    check_inputs,
    text_keys,
    vocabulary,
)
from lm.task import Cache, Params, Task
from lm.vocabulary import END_ID
from parallel.balance.lists import longest_first
from parallel.program import AXIS

LENGTHS = 64  # slot lengths are multiples of this, so that calls share programs


@dataclass(frozen=True)
class Batching:
    slots: int = 8  # texts at once on a device
    chunk: int = 32  # tokens of a prompt that are read at once
    turn: int = 16  # tokens added to every text before finished ones leave
    refill: bool = True  # a slot at once; false: all together (static batches)

    def validate(self) -> None:
        for name in ("slots", "chunk", "turn"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


def trimmed(batching: Batching, num_texts: int, length: int) -> Batching:
    """Make slots, chunks and turns no larger than the texts need.

    `num_texts` is the number of texts for one device. The number of slots becomes a power
    of two, so that calls with few texts share their programs.
    """
    slots = 1 << (num_texts - 1).bit_length()
    chunk, turn = min(batching.chunk, length), min(batching.turn, length)
    return replace(batching, slots=min(batching.slots, slots), chunk=chunk, turn=turn)


class Programs(NamedTuple):
    """Compiled functions. The first dim of texts, caches and logits is over devices."""

    empty: Callable[[], Texts]  # makes slots without a text
    begin: Callable  # (params, source_DS) -> caches of one row a device, logits_DV
    # (params, caches, chunk_DC, start, length_D, logits_DV) -> caches, logits_DV
    read: Callable
    admit: Callable  # (texts, caches, logits_DV, slot_D, length_D, index_D, key) -> texts
    turn: Callable  # (params, texts) -> texts, tokens_RN whole on every device


@lru_cache(maxsize=8)
def programs(
    task: Task, mesh: Mesh, sampling: Sampling, batching: Batching, length: int
) -> Programs:
    """Compile for slots of `length` tokens."""
    slots, rows, whole = batching.slots, P(AXIS), P()

    def split(function, in_specs, out_specs) -> Callable:
        spread = jax.shard_map(
            function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        return jax.jit(spread)

    def empty() -> Texts:
        zeros_R = jnp.zeros(slots, jnp.int32)
        keys_R = jax.random.split(jax.random.key(0), slots)
        ended_R = jnp.ones(slots, bool)
        return Texts(task.cache(slots, length), zeros_R, zeros_R, keys_R, zeros_R, ended_R)

    def begin(params, source_1S):
        cache = task.cache(1, length)
        if source_1S is not None:
            cache = task.encode(params, cache, source_1S)
        return cache, jnp.zeros((1, vocabulary(task, params)))

    def read(params, cache, chunk_1C, start, length_1, logits_1V):
        """Keep the logits of the prompt's last token, whichever chunk it is in."""
        new_1CV, cache = task.decode(params, cache, chunk_1C, start[None])
        last_1 = length_1 - 1 - start
        new_1V = jnp.take_along_axis(new_1CV, last_1[:, None, None], 1, mode="clip")[:, 0]
        inside_1 = (last_1 >= 0) & (last_1 < batching.chunk)
        return cache, jnp.where(inside_1[:, None], new_1V, logits_1V)

    def admit(texts: Texts, cache, logits_1V, slot_1, length_1, index_1, key) -> Texts:
        keys_1 = text_keys(key, index_1)
        text = begin_texts(sampling, cache, logits_1V, length_1, keys_1)
        # A device without a prompt has a slot number out of range, which is dropped.
        return jax.tree.map(lambda x, new: x.at[slot_1].set(new, mode="drop"), texts, text)

    turn = split(partial(advance, task, batching.turn, sampling), (whole, rows), rows)
    seen = NamedSharding(mesh, whole)
    return Programs(
        empty=split(empty, (), rows),
        begin=split(begin, (whole, rows), rows),
        read=split(read, (whole, rows, rows, whole, rows, rows), rows),
        admit=split(admit, (rows, rows, rows, rows, rows, rows, whole), rows),
        turn=jax.jit(turn, out_shardings=(NamedSharding(mesh, rows), seen)),
    )


class Slots:
    """The host's record of which text each slot has, and of the tokens so far."""

    def __init__(self, work: Sequence[int], limits: Sequence[int], num_devices: int):
        # Longest first: the last texts are then short, and devices finish together.
        self.waiting = deque(longest_first(work))
        self.limits, self.num_devices = limits, num_devices
        self.texts: list[list[int]] = [[] for _ in work]
        self.holds: dict[tuple[int, int], int] = {}  # (device, slot) -> text

    def choose(self, num_slots: int) -> dict[int, tuple[int, int]]:
        """Give a waiting text to each device with a free slot: device -> (slot, text).

        The longest text goes to the device with the fewest texts.
        """
        chosen: dict[int, tuple[int, int]] = {}
        loads = [0] * self.num_devices
        for device, _ in self.holds:
            loads[device] += 1
        for device in sorted(range(self.num_devices), key=loads.__getitem__):
            free = [slot for slot in range(num_slots) if (device, slot) not in self.holds]
            if free and self.waiting:
                text = self.waiting.popleft()
                chosen[device] = free[0], text
                self.holds[device, free[0]] = text
        return chosen

    def take(self, tokens_DRN: np.ndarray) -> int:
        """Add the sampled tokens; free and count the slots of finished texts."""
        held = len(self.holds)
        for (device, slot), index in list(self.holds.items()):
            text = self.texts[index]
            for token in tokens_DRN[device, slot].tolist():
                if token == END_ID or len(text) == self.limits[index]:
                    break
                text.append(token)
            if token == END_ID or len(text) == self.limits[index]:
                del self.holds[device, slot]
        return held - len(self.holds)


class Admission(NamedTuple):
    """Prompts to read at once, at most one for each device."""

    slot_D: np.ndarray  # num_slots: this device has no prompt
    length_D: np.ndarray
    index_D: np.ndarray
    prompts_DP: np.ndarray  # padded to whole chunks


def admission(
    chosen: dict[int, tuple[int, int]],
    prompts: list[list[int]],
    batching: Batching,
    num_devices: int,
) -> Admission:
    slot_D = np.full(num_devices, batching.slots, np.int32)
    length_D = np.ones(num_devices, np.int32)
    index_D = np.zeros(num_devices, np.int32)
    for device, (slot, index) in chosen.items():
        slot_D[device], index_D[device] = slot, index
        length_D[device] = len(prompts[index])
    num_chunks = -(-length_D.max() // batching.chunk)
    prompts_DP = np.zeros((num_devices, num_chunks * batching.chunk), np.int32)
    for device, (_, index) in chosen.items():
        prompts_DP[device, : length_D[device]] = prompts[index]
    return Admission(slot_D, length_D, index_D, prompts_DP)


def generate_spread(
    task: Task,
    params: Params,
    prompts: list[list[int]],
    num_new: int | Sequence[int],
    sampling: Sampling,
    seed: int,
    mesh: Mesh,
    batching: Batching,
    source_BS: np.ndarray | None = None,
) -> list[list[int]]:
    """Continue each prompt by up to `num_new` tokens (one number, or one for each prompt).

    Parameters are whole on every device of `mesh`, which has one axis. Raises the errors of
    lm.decoding.generate.
    """
    limits = [num_new] * len(prompts) if isinstance(num_new, int) else list(num_new)
    check_inputs(task, params, prompts, limits, source_BS)
    sampling.validate()
    batching.validate()
    work = [len(p) + n for p, n in zip(prompts, limits, strict=True)]
    slots = Slots(work, limits, mesh.size)
    length = -(-max(work) // LENGTHS) * LENGTHS
    batching = trimmed(batching, -(-len(prompts) // mesh.size), length)
    compiled = programs(task, mesh, sampling, batching, length)
    key, texts = jax.random.key(seed), compiled.empty()
    with tqdm(total=len(prompts), unit=" texts", leave=False) as progress:
        while slots.waiting or slots.holds:
            free = batching.refill or not slots.holds
            while free and (chosen := slots.choose(batching.slots)):
                new = admission(chosen, prompts, batching, mesh.size)
                source_DS = None if source_BS is None else source_BS[new.index_D]
                read = read_whole(compiled, params, new, source_DS, batching.chunk)
                texts = compiled.admit(
                    texts, *read, new.slot_D, new.length_D, new.index_D, key
                )
            texts, tokens_RN = compiled.turn(params, texts)
            tokens_DRN = np.asarray(tokens_RN).reshape(mesh.size, batching.slots, -1)
            progress.update(slots.take(tokens_DRN))
    return slots.texts


def read_whole(
    compiled: Programs,
    params: Params,
    new: Admission,
    source_DS: np.ndarray | None,
    chunk: int,
) -> tuple[Cache, jax.Array]:
    """Read new prompts, chunk after chunk; return their caches and logits_DV."""
    caches, logits_DV = compiled.begin(params, source_DS)
    for start in range(0, new.prompts_DP.shape[1], chunk):
        chunk_DC = new.prompts_DP[:, start : start + chunk]
        caches, logits_DV = compiled.read(
            params, caches, chunk_DC, start, new.length_D, logits_DV
        )
    return caches, logits_DV
