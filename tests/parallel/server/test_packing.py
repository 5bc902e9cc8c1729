"""What travels between a worker and a shard: bytes, errors, and nothing lost for good."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from parallel.exchange.config import CODECS, ExchangeConfig
from parallel.server.packing import wire_of
from parallel.server.shard import difference, patched
from tests.parallel.server.line import assert_same, program, rows, take

NUM = 700 + 15  # elements of the tree
BYTES = {  # of a payload: digits, then a float32 scale for each block
    "bfloat16": 2 * NUM,
    "int8": 720 + 4 * 3,
    "int4": 360 + 4 * 12,
    "int2": 180 + 4 * 2,
    "sign": 90 + 4,
    "top_k": 72 * (4 + 2),
    "random_k": 72 * 4,
}


def trees(num: int) -> list[dict]:
    rng = np.random.default_rng(3)
    return [
        {
            "a": jnp.asarray(rng.standard_normal(700, np.float32)),
            "b": jnp.asarray(rng.standard_normal((5, 3), np.float32)),
        }
        for _ in range(num)
    ]


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.mark.parametrize("codec", BYTES)
def test_what_arrives_and_what_is_kept_are_what_was_pushed(codec):
    wire = wire_of(ExchangeConfig(codec=codec, keep=0.1))
    assert wire.feedback == 1.0
    zeros = jax.tree.map(jnp.zeros_like, trees(1)[0])
    residual, arrived, pushed = zeros, np.zeros(NUM), np.zeros(NUM)
    push = jax.jit(wire.push)
    for step, tree in enumerate(trees(3)):
        key = jax.random.key(step)
        payload, residual = push(tree, residual, key)
        size = sum(x.nbytes for x in jax.tree.leaves(payload))
        assert BYTES[codec] <= size <= BYTES[codec] * 1.03 + 4, size
        got = flat(wire.unpack(payload, tree, key))
        if step == 0:
            check_first(codec, got, flat(tree))
        arrived, pushed = arrived + got, pushed + flat(tree)
    np.testing.assert_allclose(arrived + flat(residual), pushed, atol=2e-5)
    assert np.abs(flat(residual)).max() > 1e-3


def check_first(codec: str, got: np.ndarray, x: np.ndarray) -> None:
    largest = np.abs(x).max()
    match codec:
        case "bfloat16":
            assert np.all(np.abs(got - x) <= np.abs(x) * 2**-8)
        case "int8" | "int4":
            levels = {"int8": 127, "int4": 7}[codec]
            assert np.abs(got - x).max() <= largest / levels / 2 * 1.001
        case "top_k":
            chosen = np.argsort(-np.abs(x))[:72]
            assert set(np.flatnonzero(got)) == set(chosen)
            np.testing.assert_array_equal(got[chosen], x[chosen])
        case "random_k":
            chosen = np.flatnonzero(got)
            assert len(chosen) == 72
            np.testing.assert_array_equal(got[chosen], x[chosen])
        case _:
            assert np.all(np.sign(got) == np.sign(x))


def test_codecs_that_need_all_replicas_have_no_packing():
    config = ExchangeConfig()
    assert {name for name, make in CODECS.items() if make(config).packing} == set(BYTES)


def test_compressed_pulls_come_nearer_with_each_pull():
    wire = wire_of(ExchangeConfig(codec="int8"))
    params, copy = trees(2)
    errors = []
    for step in range(3):
        key = jax.random.key(step)
        payload, known = difference(wire, params, copy, key)
        copy = patched(wire, copy, payload, key)
        assert_same(copy, known)  # the shard knows what the worker has
        errors.append(np.abs(flat(copy) - flat(params)).max())
    assert errors[0] < 0.05 and errors[1] < errors[0] / 50 and errors[2] <= errors[1]


def test_a_pull_carries_only_what_is_newer_and_a_bad_push_changes_nothing():
    p = program(optax.sgd(1e38), mode="async", workers=2)
    state, params, _ = take(p, p.init(jax.random.key(1)), 1)
    shards = state.comm.pool.shards
    found = [shard.pull(1, False) for shard in shards]
    assert all(each is not None and not each.difference for each in found)
    assert [shard.pull(1, False) for shard in shards] == [None, None]
    assert shards[0].pull(1, True) is not None  # it has no copy
    drawn = rows(64).__getitem__
    state, _ = p.step(state, drawn)  # the other worker's, of the first version
    state, metrics = p.step(state, drawn)
    assert not metrics["finite"] and metrics["number"] == 2
    kept = jax.device_get(p.params(state))
    state, metrics = p.step(state, drawn)
    assert_same(jax.device_get(p.params(state)), kept)
    assert [shard.pull(0, False) for shard in shards] == [None, None]
