"""Layouts: where each array of the training state lives, as data.

A rule maps a leaf's path and shape to a PartitionSpec. A Layout is three rules, for the
parameters, for the accumulated gradients and for the optimizer state; the stages of ZeRO
(Rajbhandari et al. 2020) are the four values at the end of this file.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.program import AXIS, TrainState

Rule = Callable[[tuple, tuple[int, ...], int], P]  # (path, shape, degree) -> spec

# Sharding a bias of a few hundred bytes costs a collective and saves nothing.
MIN_SHARDED_SIZE = 1024


class Layout(NamedTuple):
    params: Rule
    grads: Rule
    opt: Rule


def replicate(path: tuple, shape: tuple[int, ...], degree: int) -> P:
    return P()


def shard_largest(path: tuple, shape: tuple[int, ...], degree: int) -> P:
    """Shard the largest dim that the degree divides; replicate where there is none."""
    dims = [dim for dim, size in enumerate(shape) if size % degree == 0]
    if not dims or math.prod(shape) < MIN_SHARDED_SIZE:
        return P()
    largest = max(dims, key=lambda dim: shape[dim])
    return P(*[AXIS if dim == largest else None for dim in range(len(shape))])


def specs(rule: Rule, tree, degree: int):
    """Apply a rule to every leaf of a tree of arrays or shapes."""
    return jax.tree.map_with_path(lambda path, x: rule(path, x.shape, degree), tree)


def state_shardings(layout: Layout, state: TrainState, mesh: Mesh) -> TrainState:
    """Return the NamedSharding of every leaf of a (possibly abstract) state."""

    def named(rule: Rule, tree):
        return jax.tree.map(
            lambda spec: NamedSharding(mesh, spec), specs(rule, tree, mesh.size)
        )

    return TrainState(
        step=named(replicate, state.step),
        params=named(layout.params, state.params),
        opt=named(layout.opt, state.opt),
        comm=named(replicate, state.comm),
        scale=named(replicate, state.scale),
    )


def bytes_per_device(tree) -> int:
    """Sum the bytes that one device holds of a tree of arrays with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


REPLICATED = Layout(replicate, replicate, replicate)
ZERO1 = Layout(replicate, replicate, shard_largest)
ZERO2 = Layout(replicate, shard_largest, shard_largest)
FSDP = Layout(shard_largest, shard_largest, shard_largest)
