"""Low rank: whole at full rank, the best product below it, and lora begins as the base."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm.compress.config import CompressConfig, compressed, compressed_optimizer, finished
from lm.compress.leaves import flat, matrices
from lm.compress.low_rank import LowRankConfig, factored, multiplied
from lm.compress.prune import PruneConfig
from lm.compress.quantise import QuantiseConfig, quantised
from tests.lm.compress.model import tree
from tests.parallel.toy import assert_equal, batches, toy_task

KEY = jax.random.key(5)


def test_products_are_the_nearest_of_their_rank():
    plain = tree(stack=True)
    # The kernels are [16, 8], [16, 24] and [24, 16].
    trained, seen = jax.jit(lambda: both("svd", 8))()
    for keys, x in matrices(plain, "kernel$").items():
        for layer in range(2):
            u, s, v = np.linalg.svd(x[layer])
            best = u[:, :8] * s[:8] @ v[:8]
            np.testing.assert_allclose(flat(seen)[keys][layer], best, atol=1e-5)
        left, right = (flat(trained)[*keys, side] for side in ("left", "right"))
        assert left.shape == (2, x.shape[1], 8) and right.shape == (2, 8, x.shape[2])
    # The query's rank is at most 8, so that its product is whole.
    query = ("scanned_layers", "attention", "query", "kernel")
    np.testing.assert_allclose(flat(seen)[query], flat(plain)[query], atol=1e-5)


def both(kind: str, rank: int):
    config = LowRankConfig(kind=kind, rank=rank)
    trained = factored(tree(stack=True), config, KEY)
    return trained, multiplied(trained, config)


def test_lora_begins_as_the_base_and_trains_nothing_else():
    config = CompressConfig(
        quantise=QuantiseConfig(weights="int8"), low_rank=LowRankConfig(kind="lora", rank=2)
    )
    base = tree(num_layers=1)
    params = jax.jit(lambda p: factored(p, config.low_rank, KEY))(base)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.jit(lambda p: finished(p, config))(params),
        jax.jit(lambda p: quantised(p, config.quantise))(base),
    )
    tx = compressed_optimizer(optax.adamw(0.1, weight_decay=0.3), config)
    state = tx.init(params)
    # Two moments and a count, of what is added alone.
    added = {keys: x for keys, x in flat(params).items() if keys not in flat(base)}
    assert len(added) == 2 * len(matrices(base, "kernel$"))
    assert len(jax.tree.leaves(state)) == 2 * len(added) + 1

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: sum(map(squares, jax.tree.leaves(finished(p, config)))))(
            params
        )
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    moved, state = step(*step(params, state))
    for keys, x in flat(moved).items():
        assert np.array_equal(x, flat(params)[keys]) == (keys not in added), keys
    seen = flat(jax.jit(lambda p: finished(p, config))(moved))
    frozen = flat(jax.jit(lambda p: quantised(p, config.quantise))(base))
    for keys in matrices(base, "kernel$"):
        name = (*keys[:-1], f"{keys[-1]}_lora")
        product = flat(moved)[*name, "left"] @ flat(moved)[*name, "right"]
        np.testing.assert_allclose(seen[keys], frozen[keys] + product, 1e-5, 1e-5)


def test_pruning_moves_no_weight_of_the_base():
    """With straight_through, pruned weights would decay in the background."""
    config = CompressConfig(
        prune=PruneConfig(kind="n_m", straight_through=True, decay=0.5),
        low_rank=LowRankConfig(kind="lora", rank=2),
    )
    base = tree(num_layers=1)
    params = factored(base, config.low_rank, KEY)
    tx = compressed_optimizer(optax.sgd(0.1), config)
    state, update = tx.init(params), jax.jit(tx.update)
    grads = jax.tree.map(jnp.ones_like, params)
    seen = params
    for _ in range(3):
        updates, state = update(grads, state, seen)
        seen = optax.apply_updates(seen, updates)
    for keys, x in matrices(base, "kernel$").items():
        np.testing.assert_array_equal(flat(state.dense)[keys], x)
        assert np.all((flat(seen)[keys] == x) | (flat(seen)[keys] == 0))
        assert np.sum(flat(seen)[keys] == 0) == x.size // 2
        left = (*keys[:-1], "kernel_lora", "left")
        np.testing.assert_allclose(flat(seen)[left], flat(params)[left] - 0.3, 1e-5, 1e-6)


def squares(x: jax.Array) -> jax.Array:
    return jnp.sum(x**2)


def test_a_merged_task_is_the_trained_one():
    """Its logits and its decoding see the parameters that are exported."""
    config = CompressConfig(
        quantise=QuantiseConfig(weights="int4"), low_rank=LowRankConfig(kind="svd", rank=4)
    )
    plain = toy_task()
    task, batch = compressed(plain, config), batches(1)[0]
    params = jax.jit(task.init)(KEY)
    given = jax.jit(lambda p: finished(p, config))(params)

    @functools.partial(jax.jit, static_argnums=0)
    def found(of, params):
        cache = of.cache(2, 4)
        decoded, _ = of.decode(params, cache, batch["tokens"][:2, :3], jnp.zeros(2, int))
        return of.logits(params, batch), decoded

    assert_equal(found(Held(task), params), found(Held(plain), given), rtol=1e-5)


class Held:
    """A task that jit can hash."""

    def __init__(self, task):
        self.cache, self.decode, self.logits = task.cache, task.decode, task.logits
