"""PowerSGD: each matrix of the gradient is sent as two thin factors.

Each step is one step of subspace iteration, and it starts from the factor Q of the last
step. P = M Q is summed over replicas and made orthonormal; Q = M^T P is summed; the total
is P Q^T. Both sums are of linear functions of M, so any all-reduce carries them. The
residual M - P P^T M is the part of this replica's M outside of the subspace. Vogels et al.
2019.

P belongs to the shorter side of M. The columns of the sum of all M then span that side, so
that P comes to each direction in time. Along a direction that P never takes, such as one
in which the replicas' gradients cancel, residuals of single replicas would grow for ever.

Layers that a model scans lie in one array, [L, ...]. Each is a matrix by itself.

Letters: L layers in an array, m rows, n columns, m <= n, r rank.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from parallel.exchange.codec import LINEAR, Across, Codec, flatten, ring_bytes
from parallel.pipeline.stacking import is_stacked
from parallel.program import Params

Shape = tuple[int, ...]


class Fold(NamedTuple):
    """How a leaf becomes matrices."""

    num: int  # L; 1 for a leaf that is no stack of layers
    rows: int
    columns: int

    @property
    def sides(self) -> tuple[int, int]:
        return min(self.rows, self.columns), max(self.rows, self.columns)

    def is_smaller(self, rank: int) -> bool:
        """Tell whether factors of this rank are smaller than the matrix."""
        return rank * sum(self.sides) < self.rows * self.columns

    def matrices(self, x: jax.Array) -> jax.Array:
        x_Lmn = x.astype(jnp.float32).reshape(self)
        return x_Lmn.mT if self.rows > self.columns else x_Lmn

    def restored(self, x_Lmn: jax.Array, like: jax.Array) -> jax.Array:
        """Give matrices the shape and type of their leaf again."""
        x = x_Lmn.mT if self.rows > self.columns else x_Lmn
        return x.reshape(like.shape).astype(like.dtype)


def power_sgd(rank: int) -> Codec:
    """Sum matrices by factors of `rank`; leaves that factors do not make smaller go whole.

    A leaf of more than two dims becomes a matrix that keeps its dims in order, the one with
    the fewest rows + columns. A step has two all-reduces: one of all P and the uncompressed
    leaves, one of all Q.
    """

    def init(params: Params) -> list[jax.Array]:
        """Draw Q_Lnr for each leaf that is compressed, the same on every replica."""
        low = [fold for fold in folds(params) if fold.is_smaller(rank)]
        keys = jax.random.split(jax.random.key(0), len(low))
        return [
            jax.random.normal(key, (fold.num, fold.sides[1], rank), jnp.float32)
            for key, fold in zip(keys, low, strict=True)
        ]

    def total(tree, qs: list[jax.Array], key, across: Across):
        leaves, structure = jax.tree.flatten(tree)
        ways = folds(tree)
        xs = [way.matrices(x) for way, x in zip(ways, leaves, strict=True)]
        low = [i for i, way in enumerate(ways) if way.is_smaller(rank)]
        whole = [i for i in range(len(xs)) if i not in low]
        ms = [xs[i] for i in low]

        ps = [times(m, q) for m, q in zip(ms, qs, strict=True)]
        ps, sums = all_reduce_in_one((ps, [xs[i] for i in whole]), across)
        ps = [jnp.linalg.qr(p)[0] for p in ps]
        own_qs = [times(m.mT, p) for m, p in zip(ms, ps, strict=True)]
        new_qs = all_reduce_in_one(own_qs, across) if low else []

        totals, residuals = [None] * len(xs), [jnp.zeros_like(x) for x in xs]
        for i, x in zip(whole, sums, strict=True):
            totals[i] = x
        for i, p, q, own_q in zip(low, ps, new_qs, own_qs, strict=True):
            totals[i] = times(p, q.mT)
            residuals[i] = xs[i] - times(p, own_q.mT)
        qs = [next_start(new, old) for new, old in zip(new_qs, qs, strict=True)]

        def restored(xs: list[jax.Array]):
            return structure.unflatten(
                way.restored(x, leaf) for way, x, leaf in zip(ways, xs, leaves, strict=True)
            )

        return restored(totals), restored(residuals), qs

    def sent_bytes(params: Params, degree: int) -> float:
        num = sum(
            way.num * min(rank * sum(way.sides), way.rows * way.columns)
            for way in folds(params)
        )
        return ring_bytes(4 * num, degree)

    return Codec(init, total, sent_bytes, LINEAR)


def folds(tree: Params) -> list[Fold]:
    """Return how each leaf of a tree becomes matrices."""
    return [
        Fold(x.shape[0], *as_matrix(x.shape[1:]))
        if is_stacked(path)
        else Fold(1, *as_matrix(x.shape))
        for path, x in jax.tree.leaves_with_path(tree)
    ]


def as_matrix(shape: Shape) -> tuple[int, int]:
    """Return the numbers of rows and columns of a leaf as a matrix; a vector is one row."""
    cuts = range(1, len(shape)) if len(shape) > 1 else [0]
    ways = [(math.prod(shape[:cut]), math.prod(shape[cut:])) for cut in cuts]
    return min(ways, key=sum)


def times(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiply in full float32: the residual is exact only as far as the products are."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def all_reduce_in_one(tree, across: Across):
    x_n, unflatten = flatten(tree)
    return unflatten(across.all_reduce(x_n, across.axes))


def next_start(new_Lnr: jax.Array, old_Lnr: jax.Array) -> jax.Array:
    """Return Q with columns of size 1, so that the product M Q has the size of M.

    After a step with a NaN or an infinity it is the old Q.
    """
    size_Lr = jnp.abs(new_Lnr).max(1, keepdims=True)
    scaled_Lnr = new_Lnr / jnp.where(size_Lr > 0, size_Lr, 1)
    return jnp.where(jnp.isfinite(size_Lr).all(), scaled_Lnr, old_Lnr)
