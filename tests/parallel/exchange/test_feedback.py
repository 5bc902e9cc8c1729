"""Error feedback: residuals stay bounded, and codecs that cannot promise it are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallel.exchange.config import CODECS, ExchangeConfig, build_exchange
from parallel.exchange.transforms import compressed
from tests.parallel.exchange.test_codecs import (
    ARGUMENTS,
    DGC,
    assert_conserved,
    draw,
    initial,
    joined,
    mesh_of,
    run,
    spread,
)

EXCHANGES, DEGREE = 1000, 8
SHAPES = {"kernel": (12, 9), "scanned_layers": (2, 8, 10)}
FIXED = {"dgc": {"warmup_steps": 0}}  # stages of a warm-up would each be compiled


def config_of(name):
    return ExchangeConfig(codec=name, **ARGUMENTS[name] | FIXED.get(name, {}))


def exchanging(names):
    """Make (gradients [exchanges, replicas, ...]) -> norms [exchanges, replicas] by codec.

    Replicas are a batched dim here: one device compiles and runs all codecs in one loop.
    """
    exchanges = {
        name: compressed(CODECS[name](config_of(name)), ("data",)) for name in names
    }

    def one_replica(gradients, key):
        def step(comms, numbered):
            index, tree = numbered
            kept = {}
            for name, exchange in exchanges.items():
                _, comms[name] = exchange.update(
                    tree, comms[name], weight=1.0, key=jax.random.fold_in(key, index)
                )
                state = comms[name]
                kept[name] = state["codec"].unsent if name == DGC else state["residual"]
            norms = {
                name: jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree)))
                for name, tree in kept.items()
            }
            return comms, norms

        first = jax.tree.map(lambda x: x[0], gradients)
        comms = {name: exchange.init(first) for name, exchange in exchanges.items()}
        return jax.lax.scan(step, comms, (jnp.arange(EXCHANGES), gradients))[1]

    replicas = jax.vmap(one_replica, in_axes=(1, None), out_axes=1, axis_name="data")
    return jax.jit(lambda gradients: replicas(gradients, jax.random.key(0)))


def test_residuals_stay_bounded():
    rng = np.random.default_rng(0)
    random = {
        name: rng.normal(0.3, 1, (EXCHANGES, 2, DEGREE, *shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    series = [{name: x[:, 0] for name, x in random.items()}]
    series.append({n: np.broadcast_to(x[:1, 1], x[:, 1].shape) for n, x in random.items()})
    able = [name for name in CODECS if config_of(name).feeds_back] + [DGC]
    assert len(able) >= 8
    # The vote shows that the law can fail: fed back, it diverges at degree 8.
    controls = ["majority_vote"]
    found = list(map(exchanging(able + controls), series))
    half = EXCHANGES // 2
    for name in able + controls:
        early, late = (
            np.array([norms[name][part].max() for norms in found])
            for part in (slice(half), slice(half, None))
        )
        if name in controls:
            assert not (late < 100 * early).any(), (early, late)  # or no number any more
        else:
            assert (late < 1.5 * early).all(), (name, early, late)


def test_what_decays_is_all_that_is_lost():
    """The total and the residuals are the inputs and a share of the residuals before."""
    config = ExchangeConfig(codec="chunk_top_k", keep=0.01, feedback_decay=0.9)
    exchange = build_exchange(config, mesh_of("4"))
    summed = spread(
        lambda tree, comm, key: exchange.update(tree, comm, weight=1.0, key=key), "4"
    )
    comm, _ = initial(exchange, draw())
    before = 0
    for seed in range(3):
        stacked = draw(seed=seed)
        total, comm = jax.device_get(summed((stacked, comm), jax.random.key(seed)))
        residual = joined(comm["residual"])
        inputs = joined(stacked) + np.float32(0.9) * before
        assert_conserved(inputs, joined(total)[0], residual)
        before = residual
    plain = ExchangeConfig(codec="int8", error_feedback="off", feedback_decay=0.9)
    with pytest.raises(ValueError, match="feedback_decay 0.9 .*feeds nothing back"):
        plain.validate(mesh_of("4"), 1)


@pytest.mark.parametrize("name", ["sign", "majority_vote"])
def test_what_nobody_touches_stays_where_it_is(name):
    """A bit has no zero; but zeros must not all become the same sign, time after time."""
    stacked = draw(shapes={"kernel": (4, 80)})
    stacked["kernel"][:, :, 60:] = 0
    totals = np.stack(
        [joined(run(name, "4", stacked, seed=seed)[0])[0] for seed in range(100)]
    ).reshape(100, 4, 80)
    size = np.abs(totals).mean()
    # A hundred fair coins; on a biased one the mean would be the size itself.
    assert np.abs(totals.mean(0)[:, 60:]).max() < 0.5 * size
    assert np.abs(totals.mean(0)[:, :60]).max() > 0.9 * size


@pytest.mark.parametrize("name, levels", [("int8", 127), ("int4", 7)])
def test_what_is_fed_back_is_rounded_to_nearest(name, levels):
    block = ARGUMENTS[name]["block"]
    x = np.random.default_rng(0).normal(size=(4, 12 * block)).astype(np.float32)
    x[1:] = 0  # so that the chunks of a sender and of an owner both hold its numbers
    total, _ = run(name, "4", {"x": x})
    blocks = x[0].reshape(-1, block)
    step = np.abs(blocks).max(1, keepdims=True) / levels
    nearest = np.round(blocks / step) * step
    np.testing.assert_allclose(joined(total)[0].reshape(-1, block), nearest, rtol=1e-5)
