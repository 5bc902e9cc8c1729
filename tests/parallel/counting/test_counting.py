"""Counts on any devices have the bits of numpy's on one."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallel.counting.program import Counting, counting_program
from parallel.counting.table import (
    count_tuples,
    empty_table,
    exchange_room,
    owner,
    pack,
    packing,
    unpack,
)
from parallel.mesh import data_mesh, device_mesh
from parallel.strategies import STRATEGIES
from tests.parallel.workers import run_two

WIDTH, LIMIT, BATCH, CAPACITY = 3, 40, 64, 256


def batches(num: int, batch_size: int = BATCH) -> list[dict[str, np.ndarray]]:
    """Tuples of which many are equal; most of the invalid ones on the first devices."""
    rng = np.random.default_rng(0)
    share = np.linspace(0, 1, batch_size)
    return [
        {
            "tuples": rng.geometric(0.3, (batch_size, WIDTH)).clip(0, LIMIT - 1),
            "valid": rng.random(batch_size) < share,
        }
        for _ in range(num)
    ]


def numpy_counts(batches) -> tuple[np.ndarray, np.ndarray]:
    tuples = np.concatenate([b["tuples"][b["valid"]] for b in batches])
    return np.unique(tuples, axis=0, return_counts=True)


def counting(capacity: int = CAPACITY, limit: int = LIMIT) -> Counting:
    return Counting(
        tuples=lambda batch, step: (batch["tuples"], batch["valid"]),
        finish=lambda tuples, counts: (tuples, counts),
        width=WIDTH,
        limit=limit,
        capacity=capacity,
    )


@functools.cache
def program_of(strategy: str, degree: int):
    return counting_program(counting(), strategy, data_mesh(degree))


def take(program, state, batches):
    for batch in batches:
        state, metrics = program.step(state, program.place(batch))
    return state, metrics


def assert_counts(program, state, batches):
    for found, expected in zip(program.params(state), numpy_counts(batches), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("degree", [1, 8])
@pytest.mark.parametrize("strategy", [n for n, row in STRATEGIES.items() if row.counts])
def test_counts_are_numpys(strategy, degree):
    program = program_of(strategy, degree)
    state, metrics = take(program, program.init(jax.random.key(0)), batches(3))
    assert_counts(program, state, batches(3))
    assert metrics["tokens"] == batches(3)[-1]["valid"].sum()
    assert metrics["distinct"] == len(numpy_counts(batches(3))[0])
    assert metrics["lost"] == 0


def test_over_two_axes():
    program = counting_program(
        counting(), "shard_map", device_mesh({"slice": 2, "data": 4})
    )
    state, _ = take(program, program.init(jax.random.key(0)), batches(2))
    assert_counts(program, state, batches(2))


@pytest.mark.parametrize(
    "before, after",
    [
        (("shard_map", 8), ("pmap", 1)),
        (("jit", 8), ("shard_map", 1)),
        (("pmap", 8), ("jit", 1)),
    ],
)
def test_a_table_goes_on_under_another_strategy(before, after):
    first, second = program_of(*before), program_of(*after)
    state, _ = take(first, first.init(jax.random.key(0)), batches(2))
    saved = jax.device_get(first.portable(state))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), second.abstract_portable)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), saved)
    state, _ = take(second, second.adopt(saved), batches(4)[2:])
    assert state.step == 4
    assert_counts(second, state, batches(4))


def test_more_for_one_owner_than_a_round_carries():
    """Distinct tuples that all belong to device 0: repeated until all have arrived."""
    degree, every = 4, np.stack(np.unravel_index(np.arange(LIMIT**2), (LIMIT, LIMIT)), 1)
    every = np.pad(every, ((0, 0), (0, 1)))
    mine = every[np.asarray(owner(pack(jnp.asarray(every), LIMIT), degree)) == 0]
    batch = {"tuples": mine[: 4 * 64], "valid": np.ones(4 * 64, bool)}
    assert len(batch["tuples"]) == 256 > 4 * exchange_room(64, degree)
    program = counting_program(counting(4096), "shard_map", data_mesh(degree))
    state, metrics = take(program, program.init(jax.random.key(0)), [batch])
    assert_counts(program, state, [batch])
    held = np.asarray(state.params.counts > 0).sum(1)
    np.testing.assert_array_equal(held, [256, 0, 0, 0])


@pytest.mark.parametrize("degree", [1, 4])
def test_a_table_that_is_too_small_says_so(degree):
    program = counting_program(counting(16), "shard_map", data_mesh(degree))
    state, metrics = take(program, program.init(jax.random.key(0)), batches(3))
    assert metrics["lost"] > 0
    with pytest.raises(ValueError, match="table of 16"):
        program.params(state)


@pytest.mark.parametrize(
    "width, limit", [(1, 1), (5, 2049), (3, 2**16 - 1), (3, 2**16), (2, 2**31), (7, 258)]
)
def test_words_sort_as_the_tuples_and_none_looks_empty(width, limit):
    rng = np.random.default_rng(0)
    tuples = rng.integers(0, limit, (200, width)).astype(np.int32)
    tuples[:100, 0] = tuples[0, 0]
    tuples[0], tuples[1] = limit - 1, 0
    words = np.asarray(pack(jnp.asarray(tuples), limit))
    assert words.shape == (200, packing(width, limit)[2])
    assert not (words == 0xFFFFFFFF).all(1).any()
    np.testing.assert_array_equal(unpack(jnp.asarray(words), width, limit), tuples)
    order = np.lexsort(words.T[::-1])
    np.testing.assert_array_equal(tuples[order], tuples[np.lexsort(tuples.T[::-1])])


def test_one_tuple_many_times():
    tuples = jnp.full((1000, 2), 7)
    table = jax.jit(partial(count_tuples, limit=8))(
        empty_table(4, packing(2, 8)[2]), tuples, jnp.arange(1000) != 3
    )
    np.testing.assert_array_equal(table.counts, [999, 0, 0, 0])


def test_too_large_integers_are_refused():
    with pytest.raises(ValueError, match="4294967296 "):
        counting_program(counting(limit=2**32), "jit", data_mesh(2))


def test_between_processes():
    """Two real processes of two devices each count what numpy counts."""
    for output in run_two("count_worker"):
        assert output.count("counted by") == 2
