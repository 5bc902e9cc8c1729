"""N-gram probabilities on the device: a tree of contexts, searched one token at a time.

Each order has six arrays: the range of each context's children and that of its words; the
sorted labels and words in these ranges; alpha of each gram and gamma of each context
(lm/models/ngram/smoothing.py). A lookup walks back from the latest token, with a binary
search in one range at each step, and applies the recursion over orders on the way.

Shapes: N lookups, n order, G grams of one order, H contexts of one length.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lm.models.ngram.smoothing import Level
from lm.task import Params


def searchable(
    level: Level, alpha_G: np.ndarray, gamma_H: np.ndarray, num_parents: int
) -> dict[str, jax.Array]:
    """Lay out one order for the device: ranges of children, and of words, of each node.

    Each array has one element that is not used, so that none is empty.
    """

    def ends(sorted_owners: np.ndarray, num_owners: int) -> jax.Array:
        starts = np.searchsorted(sorted_owners, np.arange(num_owners + 1))
        return jnp.asarray(np.append(starts, starts[-1:]), jnp.int32)

    def one_more(x: np.ndarray, dtype) -> jax.Array:
        return jnp.asarray(np.append(x, 0), dtype)

    return {
        "children": ends(level.parents_H, num_parents),
        "labels": one_more(level.labels_H, jnp.int32),
        "grams": ends(level.nodes_G, len(level.labels_H)),
        "words": one_more(level.words_G, jnp.int32),
        "alpha": one_more(alpha_G, jnp.float32),
        "gamma": one_more(gamma_H, jnp.float32),
    }


def find(values: jax.Array, low_N, high_N, wanted_N) -> tuple[jax.Array, jax.Array]:
    """Search each range of ascending values; return places, and which values were found."""

    def halve(_, bounds):
        low_N, high_N = bounds
        middle_N = (low_N + high_N) // 2
        right_N = (low_N < high_N) & (values[middle_N] < wanted_N)
        return jnp.where(right_N, middle_N + 1, low_N), jnp.where(right_N, high_N, middle_N)

    low_N, end_N, wanted_N = jnp.broadcast_arrays(low_N, high_N, wanted_N)
    rounds = values.size.bit_length()
    place_N, _ = jax.lax.fori_loop(0, rounds, halve, (low_N, end_N))
    return place_N, (place_N < end_N) & (values[place_N] == wanted_N)


def probabilities(
    params: Params, contexts_Nn: jax.Array, words_N: jax.Array, uniform: float, direct: bool
) -> jax.Array:
    """Return p(word | context)_N; a context [..., n - 1] ends with the latest token.

    `words_N` may have more dims than the contexts, after their dims. With `direct`, each
    order is mixed with the uniform distribution instead of the order below it.
    """
    p_N = jnp.full(words_N.shape, uniform, jnp.float32)
    node = jnp.zeros(contexts_Nn.shape[:-1], jnp.int32)
    seen = jnp.ones(node.shape, bool)
    spread = (...,) + (None,) * (words_N.ndim - node.ndim)
    for depth, level in enumerate(params):
        if depth:
            ends, label = level["children"], contexts_Nn[..., -depth]
            node, found = find(level["labels"], ends[node], ends[node + 1], label)
            seen &= found
            node = jnp.where(seen, node, 0)
        low, high = level["grams"][node], level["grams"][node + 1]
        gram_N, found_N = find(level["words"], low[spread], high[spread], words_N)
        alpha_N = jnp.where(found_N, level["alpha"][gram_N], 0.0)
        lower_N = uniform if direct else p_N
        new_N = alpha_N + level["gamma"][node][spread] * lower_N
        p_N = jnp.where(seen[spread], new_N, p_N)
    return p_N
