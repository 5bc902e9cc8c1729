"""PowerSGD: each matrix of the gradient is sent as two thin factors.

Each step is one step of subspace iteration, and it starts from the factor Q of the last
step. P = M Q is summed over replicas and made orthonormal; Q = M^T P is summed; the total
is P Q^T. Both sums are of linear functions of M, so any all-reduce carries them. The
residual M - P P^T M is the part of this replica's M outside of the subspace. Vogels et al.
2019.

Letters: m rows, n columns, r rank.
"""

import math

import jax
import jax.numpy as jnp

from parallel.exchange.codec import LINEAR, Across, Codec, flatten, ring_bytes
from parallel.program import Params

Shape = tuple[int, ...]


def power_sgd(rank: int) -> Codec:
    """Sum matrices by factors of `rank`; leaves that factors do not make smaller go whole.

    A leaf of more than two dims becomes a matrix that keeps its dims in order, the one with
    the fewest rows + columns. A step has two all-reduces: one of all P and the uncompressed
    leaves, one of all Q.
    """

    def init(params: Params) -> list[jax.Array]:
        """Draw Q_nr for each leaf that is compressed, the same on every replica."""
        shapes = [as_matrix(x.shape) for x in jax.tree.leaves(params)]
        shapes = [shape for shape in shapes if is_smaller(shape, rank)]
        keys = jax.random.split(jax.random.key(0), len(shapes))
        return [
            jax.random.normal(key, (n, rank), jnp.float32)
            for key, (_, n) in zip(keys, shapes, strict=True)
        ]

    def total(tree, qs: list[jax.Array], key, across: Across):
        leaves, structure = jax.tree.flatten(tree)
        xs = [x.astype(jnp.float32).reshape(as_matrix(x.shape)) for x in leaves]
        low = [i for i, x in enumerate(xs) if is_smaller(x.shape, rank)]
        whole = [i for i in range(len(xs)) if i not in low]
        ms = [xs[i] for i in low]

        ps = [times(m, q) for m, q in zip(ms, qs, strict=True)]
        ps, sums = all_reduce_in_one((ps, [xs[i] for i in whole]), across)
        ps = [jnp.linalg.qr(p)[0] for p in ps]
        own_qs = [times(m.T, p) for m, p in zip(ms, ps, strict=True)]
        new_qs = all_reduce_in_one(own_qs, across) if low else []

        totals, residuals = [None] * len(xs), [jnp.zeros_like(x) for x in xs]
        for i, x in zip(whole, sums, strict=True):
            totals[i] = x
        for i, p, q, own_q in zip(low, ps, new_qs, own_qs, strict=True):
            totals[i] = times(p, q.T)
            residuals[i] = xs[i] - times(p, own_q.T)
        qs = [next_start(new, old) for new, old in zip(new_qs, qs, strict=True)]
        return (
            restored(structure, totals, leaves),
            restored(structure, residuals, leaves),
            qs,
        )

    def sent_bytes(params: Params, degree: int) -> float:
        shapes = [as_matrix(x.shape) for x in jax.tree.leaves(params)]
        num = sum(rank * (m + n) if is_smaller((m, n), rank) else m * n for m, n in shapes)
        return ring_bytes(4 * num, degree)

    return Codec(init, total, sent_bytes, LINEAR)


def as_matrix(shape: Shape) -> tuple[int, int]:
    """Return the numbers of rows and columns of a leaf as a matrix; a vector is one row."""
    cuts = range(1, len(shape)) if len(shape) > 1 else [0]
    folds = [(math.prod(shape[:cut]), math.prod(shape[cut:])) for cut in cuts]
    return min(folds, key=sum)


def is_smaller(shape: tuple[int, int], rank: int) -> bool:
    m, n = shape
    return rank * (m + n) < m * n


def times(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiply in full float32: the residual is exact only as far as the products are."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def all_reduce_in_one(tree, across: Across):
    x_n, unflatten = flatten(tree)
    return unflatten(across.all_reduce(x_n, across.axes))


def next_start(new_nr: jax.Array, old_nr: jax.Array) -> jax.Array:
    """Return Q with columns of size 1, so that the product M Q has the size of M.

    After a step with a NaN or an infinity it is the old Q.
    """
    size_r = jnp.abs(new_nr).max(0)
    scaled_nr = new_nr / jnp.where(size_r > 0, size_r, 1)
    return jnp.where(jnp.isfinite(size_r).all(), scaled_nr, old_nr)


def restored(structure, xs: list[jax.Array], leaves: list[jax.Array]):
    """Give each matrix the shape and type of its leaf again."""
    return structure.unflatten(
        [
            x.reshape(leaf.shape).astype(leaf.dtype)
            for x, leaf in zip(xs, leaves, strict=True)
        ]
    )
