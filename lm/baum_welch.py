"""The M-step of Baum-Welch as an optax transformation: counts in, log-probabilities out.

The gradient of the loss with respect to log-probabilities is minus their expected counts
(lm/models/hmm.py). So expectation maximisation is an optimizer like any other: it sees only
the sum over examples, no matter which devices summed it.

If a batch is not the whole corpus, the step moves the counts by a step size,
(k + 1)^-forgetting after k steps: stepwise EM (Cappe and Moulines 2009; Liang and Klein
2009). A learning rate other than 1 stretches the step in log space: over-relaxed EM
(Salakhutdinov and Roweis 2003).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class BaumWelchState(NamedTuple):
    count: jax.Array  # int32[], updates done
    counts: optax.Params  # expected counts, a running mean; shapes of the parameters


def baum_welch(forgetting: float, smoothing: float) -> optax.GradientTransformation:
    """Set parameters to the log of normalised expected counts, over the last dim.

    With `forgetting` 0 all earlier counts are forgotten: EM on each batch, exact if the
    batch is the corpus. With 1 none is forgotten. Between 0.5 and 1 stepwise EM converges.
    `smoothing` is added to each count, in the unit of the gradients: pseudo-counts per
    token if those are divided by the number of tokens. A distribution without counts stays
    as it is.
    """

    def init(params: optax.Params) -> BaumWelchState:
        return BaumWelchState(jnp.int32(0), jax.tree.map(jnp.zeros_like, params))

    def update(grads, state: BaumWelchState, params=None):
        rate = (state.count + 1.0) ** -forgetting
        counts = jax.tree.map(
            lambda old, g: (1 - rate) * old - rate * g, state.counts, grads
        )
        updates = jax.tree.map(
            lambda c, p: log_normalised(c, p, smoothing) - p, counts, params
        )
        return updates, BaumWelchState(state.count + 1, counts)

    return optax.GradientTransformation(init, update)


def log_normalised(counts: jax.Array, otherwise: jax.Array, smoothing: float) -> jax.Array:
    """Return log(counts / their sum) over the last dim; `otherwise` if all are zero."""
    counts = jnp.maximum(counts, 0.0)  # a lossy codec can make them negative
    counted = jnp.sum(counts, -1, keepdims=True) > 0
    tiny = jnp.finfo(counts.dtype).tiny  # the log of 0 must stay a number
    smoothed = jnp.maximum(counts + smoothing, tiny)
    logs = jnp.log(smoothed) - jnp.log(jnp.sum(smoothed, -1, keepdims=True))
    return jnp.where(counted, logs, otherwise)
