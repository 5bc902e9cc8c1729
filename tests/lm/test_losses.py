"""The weighted loss against NumPy, in one piece and in chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.losses import cross_entropy

B, T, D, V = 3, 8, 5, 11
RNG = np.random.default_rng(0)
X, HEAD = RNG.standard_normal((B, T, D)), RNG.standard_normal((D, V))
LABELS, MASK = RNG.integers(0, V, (B, T)), RNG.random((B, T)) < 0.7
WEIGHTS = RNG.uniform(0, 3, (B, T)) * (RNG.random((B, T)) < 0.8)


def token_losses(smoothing: float) -> np.ndarray:
    """Return the cross-entropy of each token against its smoothed label, float64[B, T]."""
    logits = X @ HEAD
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    goal = (1 - smoothing) * np.eye(V)[LABELS] + smoothing / V
    return -(goal * logp).sum(-1)


@pytest.mark.parametrize("chunk, smoothing", [(0, 0.0), (2, 0.2)])
def test_weighted_sums(chunk, smoothing):
    @jax.jit
    def sums(weights):
        return cross_entropy(
            jnp.asarray(X), lambda x: x @ HEAD, LABELS, MASK, chunk, smoothing, weights
        )

    weights = jnp.asarray(WEIGHTS, jnp.float32)
    objective, found = sums(weights)
    counted = WEIGHTS * MASK
    expected = {
        "loss": (counted * token_losses(0)).sum(), "tokens": MASK.sum(),
        "weight": counted.sum(), "weight_squares": (counted**2).sum(),
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)
    np.testing.assert_allclose(objective, (counted * token_losses(smoothing)).sum(), 1e-5)
    # The loss of a token is the derivative with respect to its weight.
    each = jax.jit(jax.grad(lambda weights: sums(weights)[1]["loss"]))(weights)
    np.testing.assert_allclose(each, MASK * token_losses(0), rtol=1e-5)
    assert jax.eval_shape(sums, None)[1].keys() == {"loss", "tokens"}


@pytest.mark.parametrize("chunk, smoothing", [(0, 0.0), (2, 0.2)])
def test_gradient(chunk, smoothing):
    def objective(x):
        return cross_entropy(x, lambda x: x @ HEAD, LABELS, MASK, chunk, smoothing)[0]

    x, found = jnp.asarray(X), jax.jit(jax.grad(objective))
    exps = np.exp(X @ HEAD)
    goal = (1 - smoothing) * np.eye(V)[LABELS] + smoothing / V
    slopes = MASK[..., None] * (exps / exps.sum(-1, keepdims=True) - goal)
    np.testing.assert_allclose(found(x), slopes @ HEAD.T, rtol=1e-4, atol=1e-6)
    # A scatter would be into an array of its own, as large as the logits.
    assert "scatter" not in found.lower(x).as_text()
