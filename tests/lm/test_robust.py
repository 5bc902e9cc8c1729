"""Robust weights: estimates that find the median, and weights that are the textbooks'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.precision import PrecisionConfig, loss_scaling
from lm.robust import WEIGHTS, RobustConfig, robust_scaling, row_signs

ROWS = 32


def scaling(**config):
    config = RobustConfig(**{"weights": "huber"} | config)
    return robust_scaling(loss_scaling(PrecisionConfig()), config)


def estimates(losses, counts, finite=True, **config):
    """Feed [steps, rows] of losses; return the median and the distance after each step."""
    made = scaling(**config)

    def step(state, now):
        losses_B, counts_B = now
        usual = jnp.full(len(losses_B), state.median), jnp.full(ROWS, state.distance)
        sums = row_signs(losses_B, counts_B, *usual)
        state = made.update(state, jnp.asarray(finite), sums)
        return state, (state.median, state.distance)

    arrays = jnp.asarray(losses, jnp.float32), jnp.asarray(counts)
    return jax.lax.scan(step, made.init(), arrays)


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_the_estimates_find_the_median_and_the_distance_from_it(scale):
    """Skewed losses with gross outliers, some rows empty, and a level that falls first."""
    rng = np.random.default_rng(0)
    losses = 3 + scale * rng.lognormal(0, 0.8, (6000, ROWS))
    losses = np.where(rng.random(losses.shape) < 0.02, 1e4, losses)
    counts = rng.random(losses.shape) < 0.8
    whole = losses[counts]
    losses = np.where(counts, losses, 0)  # the loss of an empty row
    falling = scale * 20 * np.maximum(1 - np.arange(6000) / 500, 0)[:, None]
    state, (median, distance) = estimates(losses + falling, counts, gain=0.02)
    expected = np.median(whole)
    far = np.median(np.abs(whole - expected))
    assert median[2000:].mean() == pytest.approx(expected, abs=0.02 * far)
    assert distance[2000:].mean() == pytest.approx(far, rel=0.03)
    # In the balance of drift and noise the deviation of the median is of this order.
    assert median[2000:].std() < 0.1 * far
    assert state.seen == 6000


def test_steps_that_are_skipped_or_empty_move_nothing():
    losses, counts = np.full((3, ROWS), 2.0), np.ones((3, ROWS), bool)
    for state, _ in (
        estimates(losses, counts, finite=False),
        estimates(losses * np.nan, counts, finite=False),
        estimates(losses, ~counts),
    ):
        assert state.seen == 0 and np.isfinite(state.median) and state.distance == 1
    state, _ = estimates(losses, counts)  # rows that are all alike
    assert state.seen == 3 and state.median == 2 and state.distance > 0


def test_weights_are_the_slope_of_their_loss_over_z():
    """Huber's and Tukey's rho, written out; the weight is rho'(z) / z."""
    c, z = 1.7, np.linspace(-4, 4, 80)

    def rho_huber(z):
        return jnp.where(jnp.abs(z) < c, z**2 / 2, c * (jnp.abs(z) - c / 2))

    def rho_tukey(z):
        inside = (1 - (1 - (z / c) ** 2) ** 3) * c**2 / 6
        return jnp.where(jnp.abs(z) < c, inside, c**2 / 6)

    for name, rho in {"huber": rho_huber, "tukey": rho_tukey}.items():
        expected = jax.vmap(jax.grad(rho))(z) / z
        found = WEIGHTS[name][0](jnp.asarray(z, jnp.float32), c)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert WEIGHTS[name][0](jnp.float32(np.inf), c) == 0


def test_a_batch_is_marked_with_what_is_usual_once_it_has_settled():
    made = scaling(settle=5)
    state = made.init()._replace(median=jnp.float32(2), distance=jnp.float32(0.5))
    batch = {"row": np.arange(4), "tokens": np.zeros((4, 9))}
    for seen, acts in [(4, 0.0), (5, 1.0)]:
        marked = made.mark(state._replace(seen=jnp.int32(seen)), batch)
        np.testing.assert_array_equal(marked["usual"], [[2, 0.5, acts]] * 4)
    told = made.told(state)
    assert (told["row_loss_median"], told["row_loss_distance"]) == (2, 0.5)
    assert told["loss_scale"] == 1
    assert scaling(weights="none").mark(None, batch) is batch
