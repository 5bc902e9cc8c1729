"""Layouts: where each array of the training state lives, as data.

A rule picks which dim of a leaf is sharded. The dim is sharded over `fsdp` if the mesh
has this axis, else over `data`. A Layout is three rules: for the parameters, for the
accumulated gradients and for the optimizer state. The four values at the end of this file
are the stages of ZeRO (Rajbhandari et al. 2020). Over the other axes of the batch the state
is replicated (hybrid sharding, Zhao et al. 2023). A model's table of tensor dims shards the
same leaves over the axis `tensor` as well (Shoeybi et al. 2019, Megatron-LM).
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.forms.dealing import is_dealt
from parallel.pipeline.stacking import is_stacked
from parallel.program import AXIS, TENSOR, TensorDims, TrainState

# (shape, degree, the dim that lies over `tensor`) -> dim; None: whole
Rule = Callable[[tuple[int, ...], int, int | None], int | None]
Degrees = Mapping[str, int]  # mesh axis -> degree

# Sharding a bias of a few hundred bytes costs a collective and saves nothing.
MIN_SHARDED_SIZE = 1024


class Layout(NamedTuple):
    params: Rule
    grads: Rule
    opt: Rule


def replicate(shape: tuple[int, ...], degree: int, taken: int | None) -> None:
    return None


def shard_largest(
    shape: tuple[int, ...], degree: int, taken: int | None = None
) -> int | None:
    """Pick the largest dim that the degree divides and that is not taken; else none."""
    dims = [dim for dim, size in enumerate(shape) if size % degree == 0 and dim != taken]
    if not dims or degree == 1 or math.prod(shape) < MIN_SHARDED_SIZE:
        return None
    return max(dims, key=lambda dim: shape[dim])


def shard_axis(degrees: Degrees) -> str:
    return "fsdp" if "fsdp" in degrees else AXIS


def tensor_dim(path: tuple, shape: tuple[int, ...], table: TensorDims, degree: int):
    """Return the dim that is split over `tensor`: that of the first matching pattern.

    Optimizer state has the paths of the parameters, but it may have fewer dims (factored
    moments). A leaf is replicated if it lacks the dim or if the degree does not divide it.
    """
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    entry = next((entry for entry in table if re.search(entry[0], name)), None)
    if entry is None or degree == 1:
        return None
    _, dim, parts, _ = entry
    fits = parts % degree == 0 and -dim <= len(shape) and shape[dim] % degree == 0
    return len(shape) + dim if fits else None


def validate_tensor_dims(table: TensorDims, degree: int) -> None:
    """Raise ValueError for a tensor degree that the model cannot be cut into."""
    if degree > 1 and not table:
        raise ValueError(
            f"parallel.tensor is {degree}, but this model says of no parameter how it is "
            "split over tensor; set parallel.tensor to 1"
        )
    for _, _, parts, name in table:
        if name and parts % degree:
            raise ValueError(
                f"{name} {parts} is not divisible by parallel.tensor {degree}; "
                "change one of them"
            )


def specs(rule: Rule, tree, degrees: Degrees, tensor_dims: TensorDims = ()):
    """Give every leaf of a tree of arrays or shapes its PartitionSpec."""
    axis = shard_axis(degrees)

    def spec(path: tuple, x) -> P:
        if is_dealt(path):  # whole matrices, as many to each device
            split = rule is not replicate and degrees[axis] > 1
            return P(axis) if split else P()
        tensor = tensor_dim(path, x.shape, tensor_dims, degrees.get(TENSOR, 1))
        # A stack of layers lies as each layer would, so that a device can gather one layer.
        first = int(is_stacked(path) and len(x.shape) > 0)
        taken = None if tensor is None else tensor - first
        dim = rule(x.shape[first:], degrees[axis], taken)
        axes = {None if dim is None else dim + first: axis, tensor: TENSOR}
        axes.pop(None, None)
        return P(*[axes.get(dim) for dim in range(max(axes, default=-1) + 1)])

    return jax.tree.map_with_path(spec, tree)


def only(axes: Collection[str], specs):
    """Keep only these axes in a tree of specs."""
    return jax.tree.map(
        lambda spec: P(*[axis if axis in axes else None for axis in spec]),
        specs,
        is_leaf=lambda x: isinstance(x, P),
    )


def sharded_dims(specs, tree, axis: str) -> list[int | None]:
    leaves = jax.tree.structure(tree).flatten_up_to(specs)
    return [sharded_dim(spec, axis) for spec in leaves]


def sharded_dim(spec: P, axis: str) -> int | None:
    return next((dim for dim, name in enumerate(spec) if name == axis), None)


def state_shardings(
    layout: Layout, state: TrainState, mesh: Mesh, tensor_dims: TensorDims = ()
) -> TrainState:
    """Return the NamedSharding of every leaf of a (possibly abstract) state."""

    def named(rule: Rule, tree):
        return jax.tree.map(
            lambda spec: NamedSharding(mesh, spec),
            specs(rule, tree, mesh.shape, tensor_dims),
        )

    return TrainState(
        step=named(replicate, state.step),
        params=named(layout.params, state.params),
        opt=named(layout.opt, state.opt),
        comm=named(replicate, state.comm),
        scale=named(replicate, state.scale),
    )


def bytes_per_device(tree) -> int:
    """Sum the bytes of a tree of arrays with shardings on the device that has the most."""
    held: dict[jax.Device, int] = {}
    for x in jax.tree.leaves(tree):
        size = math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for device in x.sharding.device_set:
            held[device] = held.get(device, 0) + size
    return max(held.values(), default=0)


REPLICATED = Layout(replicate, replicate, replicate)
ZERO1 = Layout(replicate, replicate, shard_largest)
ZERO2 = Layout(replicate, shard_largest, shard_largest)
FSDP = Layout(shard_largest, shard_largest, shard_largest)
