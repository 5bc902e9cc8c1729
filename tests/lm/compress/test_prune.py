"""Pruning: exactly as many weights as asked, chosen as by a sort, and none comes back."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm.compress.leaves import flat, matrices
from lm.compress.prune import PruneConfig, progress, prune_now, pruned
from lm.compress.ranking import ordered, smallest
from tests.lm.compress.model import tree


def test_the_k_smallest_are_those_of_a_stable_sort():
    rng = np.random.default_rng(1)
    many = rng.choice([0.0, 0.5, 0.5, 1.5, 3e-39, 2e30], (40,)).astype(np.float32)
    arrays = {("a",): many[:24].reshape(4, 6), ("b",): many[24:]}
    find = jax.jit(lambda k: smallest({n: ordered(x) for n, x in arrays.items()}, k))
    order = np.argsort(many, kind="stable")
    for k in range(41):
        found = find(k)
        mask = np.concatenate([np.ravel(found["a",]), found["b",]])
        expected = np.zeros(40, bool)
        expected[order[:k]] = True
        np.testing.assert_array_equal(mask, expected, err_msg=str(k))


def zeros(params) -> dict:
    return {keys: np.asarray(x) == 0 for keys, x in flat(params).items()}


def expected_zeros(params, config: PruneConfig) -> dict:
    """Prune in NumPy, by a sort."""
    gone = {keys: np.zeros(x.shape, bool) for keys, x in flat(params).items()}
    chosen = {keys: np.abs(x) for keys, x in matrices(params, config.matrices).items()}
    if config.kind == "n_m":
        for keys, x in chosen.items():
            for start, column in itertools.product(
                range(0, x.shape[-2], config.group), range(x.shape[-1])
            ):
                rows = slice(start, start + config.group)
                order = np.argsort(x[rows, column])
                gone[keys][rows, column][order[: config.group - config.keep]] = True
        return gone
    if config.scope == "layer":
        for keys, x in chosen.items():
            for index in np.ndindex(x.shape[:-2]):
                order = np.argsort(x[index].ravel())
                gone[keys][index].ravel()[order[: round(config.sparsity * order.size)]] = 1
        return gone
    limit = np.sort(np.concatenate([x.ravel() for x in chosen.values()]))
    limit = limit[round(config.sparsity * len(limit))]
    return gone | {keys: x < limit for keys, x in chosen.items()}


def test_after_training_exactly_the_smallest_are_pruned():
    for config, stack in [
        (PruneConfig(kind="magnitude", sparsity=0.37), False),
        (PruneConfig(kind="magnitude", sparsity=0.8, matrices="mlp"), False),
        (PruneConfig(kind="magnitude", sparsity=0.81, scope="layer"), True),
    ]:
        params = tree(stack=stack)
        found = zeros(jax.jit(prune_now, static_argnums=1)(params, frozen(config)))
        expected = expected_zeros(params, config)
        for keys in expected:
            np.testing.assert_array_equal(found[keys], expected[keys], err_msg=str(keys))


def frozen(config: PruneConfig) -> PruneConfig:
    """Return a config that jit can hash; two are equal only if they are one."""
    kind = type("Frozen", (PruneConfig,), {"__hash__": object.__hash__})
    return kind(**vars(config))


def test_groups_keep_exactly_their_largest():
    for keep, group in [(2, 4), (1, 8)]:
        config, params = PruneConfig(kind="n_m", keep=keep, group=group), tree(stack=True)
        pruned_params = jax.jit(lambda p: prune_now(p, config))(params)  # noqa: B023
        for keys, x in matrices(pruned_params, config.matrices).items():
            kept = np.asarray(x != 0).reshape(*x.shape[:-2], -1, group, x.shape[-1])
            assert np.all(kept.sum(-2) == keep), keys
        for (keys, gone), x in zip(
            zeros(pruned_params).items(), flat(params).values(), strict=True
        ):
            if keys[-1] != "kernel":
                continue
            whole = np.abs(x).reshape(*x.shape[:-2], -1, group, x.shape[-1])
            limit = np.sort(whole, -2)[..., [group - keep], :]
            np.testing.assert_array_equal(gone.reshape(whole.shape), whole < limit)


def test_the_schedule_is_the_cubic_one():
    config = PruneConfig(kind="magnitude", begin=5, end=25)
    # Zhu and Gupta 2017, (1), with an initial sparsity of 0.
    for update, done in [(1, 0.0), (5, 0.0), (10, 1 - 0.75**3), (25, 1.0), (30, 1.0)]:
        np.testing.assert_allclose(progress(config, jnp.int32(update)), done, rtol=1e-6)


def trained(config: PruneConfig, steps: int, tx=None):
    """Train with random gradients; yield each step's parameters and the state."""
    tx = tx or optax.adamw(0.05, weight_decay=0.3)
    tx = pruned(optax.with_extra_args_support(tx), config)
    params, rng = tree(), np.random.default_rng(2)
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(steps):
        grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), params)
        updates, state = update(grads, state, params, value=jnp.float32(0))
        params = optax.apply_updates(params, updates)
        yield jax.device_get(params), state, grads


def share_of_zeros(params, pattern: str = "kernel$") -> tuple[int, int]:
    chosen = matrices(params, pattern).values()
    return sum(int((x == 0).sum()) for x in chosen), sum(x.size for x in chosen)


def test_nothing_comes_back_and_the_rise_ends_exactly():
    for kind in ("magnitude", "random"):
        config = PruneConfig(kind=kind, sparsity=0.7, begin=2, end=9, every=3)
        before, counts = None, []
        for params, _, _ in trained(config, 12):
            now = zeros(params)
            if before:
                assert all(np.all(now[keys] >= before[keys]) for keys in now)
            before = now
            gone, size = share_of_zeros(params)
            counts.append(gone)
        at = [1 - (1 - (update - 2) / 7) ** 3 for update in (2, 5, 8, 9)]
        expected = [int(np.float32(part) * round(0.7 * size)) for part in at]
        np.testing.assert_allclose([counts[i] for i in (1, 4, 7, 8)], expected, atol=1)
        assert counts[8:] == [round(0.7 * size)] * 4


def test_one_update_equals_the_formula_with_and_without_straight_through():
    """Plain SGD on paper: outside of the mask nothing, or the gradient and the decay."""
    rate, decay = 0.1, 0.5
    for straight in (False, True):
        more = {"straight_through": True, "decay": decay} if straight else {}
        config = PruneConfig(kind="magnitude", sparsity=0.5, **more)
        dense, mask = flat(jax.device_get(tree())), None
        for params, _, grads in trained(config, 4, optax.sgd(rate)):
            grads = flat(grads)
            for keys, x in dense.items():
                kept = np.ones(x.shape, bool) if mask is None else mask[keys]
                outside = grads[keys] + decay * x if straight else 0 * x
                dense[keys] = x - np.float32(rate) * np.where(kept, grads[keys], outside)
            if mask is None or straight:
                sorted_ = expected_zeros(unflat(dense), config)
                new = {keys: ~gone for keys, gone in sorted_.items()}
                revived = mask and any(np.any(new[k] & ~mask[k]) for k in new)
                assert mask is None or revived
                mask = new
            for keys, x in flat(params).items():
                expected = np.where(mask[keys], dense[keys], 0)
                np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)
                assert np.all(x[~mask[keys]] == 0)
                if not straight:
                    dense[keys] = expected


def unflat(leaves: dict) -> dict:
    whole = jax.tree.map(lambda x: x, tree())
    return jax.tree.map_with_path(lambda p, _: leaves[tuple(e.key for e in p)], whole)
