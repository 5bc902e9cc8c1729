"""Whether the copies of a state are still the same on all devices that hold one.

A collective, a kernel or a memory chip that is wrong once leaves one replica with other
bits than the rest. Nothing in a step notices this. Here every device sums the bits of its
own part of each leaf, one number, and all numbers are gathered and compared.

Two devices hold copies of the same part of a leaf if they differ only along axes of the
mesh that its PartitionSpec does not name. So one rule serves all strategies: replicated
parameters have a copy on each device, ZeRO's shards have none, and hsdp's have one in each
group of devices. Local replicas, which differ on purpose, are compared only in what they
have agreed on.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # by bytes an element


class Parting(NamedTuple):
    """The first leaf whose copies differ."""

    leaf: str
    devices: list[jax.Device]  # those that differ from most; all, if no value has most
    num_copies: int
    num_leaves: int  # whose copies differ


class Leaf(NamedTuple):
    name: str
    index: int  # among the leaves of the state
    spec: PartitionSpec
    copied: tuple[str, ...]  # the axes along which devices hold copies


def bit_sum(x: jax.Array) -> jax.Array:
    """Return uint32[], the sum of the words of an array, modulo 2**32.

    It does not depend on the order. A flip of one bit always changes it.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(x, WORDS[x.dtype.itemsize])
    return jnp.sum(words, dtype=jnp.uint32)


def find_parting(abstract: Any) -> Callable[[Any], Parting | None]:
    """Return what compares the copies of a state with these shapes and shardings.

    It returns the first leaf that differs, in the order of the tree; None if all copies are
    the same. All processes of a mesh call it together, and all learn the same.
    """
    compared = [(mesh, leaves, summed(mesh, leaves)) for mesh, leaves in copies(abstract)]

    def parting(state: Any) -> Parting | None:
        arrays = jax.tree.leaves(state)
        found = []
        for mesh, leaves, sums in compared:
            table = np.asarray(sums([arrays[leaf.index] for leaf in leaves]))
            columns = zip(leaves, table.T, strict=True)
            differing = [
                (leaf, odd)
                for leaf, column in columns
                if (odd := odd_devices(mesh, leaf, column))
            ]
            found += [(leaf, odd, num_copies(mesh, leaf)) for leaf, odd in differing]
        if not found:
            return None
        leaf, odd, copies = min(found, key=lambda each: each[0].index)
        return Parting(leaf.name, odd, copies, len(found))

    return parting


def copies(abstract: Any) -> list[tuple[Mesh, list[Leaf]]]:
    """List the leaves of which several devices hold a copy, by their mesh."""
    found: dict[Mesh, list[Leaf]] = collections.defaultdict(list)
    for index, (path, x) in enumerate(jax.tree.leaves_with_path(abstract)):
        mesh, spec = x.sharding.mesh, x.sharding.spec
        copied = tuple(axis for axis in mesh.axis_names if axis not in axes_of(spec))
        leaf = Leaf(
            jax.tree_util.keystr(path, simple=True, separator="/"), index, spec, copied
        )
        if num_copies(mesh, leaf) > 1:
            found[mesh].append(leaf)
    return list(found.items())


def axes_of(spec: PartitionSpec) -> set[str]:
    """Return the axes of the mesh that split an array."""
    return {
        axis
        for part in spec
        if part
        for axis in (part if isinstance(part, tuple) else (part,))
    }


def num_copies(mesh: Mesh, leaf: Leaf) -> int:
    return int(np.prod([mesh.shape[axis] for axis in leaf.copied]))


def summed(mesh: Mesh, leaves: Sequence[Leaf]) -> Callable[[list[jax.Array]], jax.Array]:
    """Return the program of uint32[devices, leaves], the sums that each device found."""

    def own(parts: list[jax.Array]) -> jax.Array:
        mine = jnp.stack([bit_sum(part) for part in parts])
        return jax.lax.all_gather(mine, mesh.axis_names)

    return jax.jit(
        jax.shard_map(
            own,
            mesh=mesh,
            in_specs=([leaf.spec for leaf in leaves],),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
    )


def odd_devices(mesh: Mesh, leaf: Leaf, sums: np.ndarray) -> list[jax.Device]:
    """Return the devices whose sum differs from most of those with a copy; [] if none.

    `sums` is uint32[devices].
    """
    names = mesh.axis_names
    order = [names.index(axis) for axis in names if axis not in leaf.copied]
    order += [names.index(axis) for axis in leaf.copied]

    def by_part(x: np.ndarray) -> np.ndarray:
        shaped = x.reshape(mesh.devices.shape).transpose(order)
        return shaped.reshape(-1, num_copies(mesh, leaf))

    odd = []
    for devices, values in zip(by_part(mesh.devices), by_part(sums), strict=True):
        (most, count), *_ = collections.Counter(values.tolist()).most_common(1)
        usual = most if 2 * count > len(values) else None
        if count < len(values):
            odd += [d for d, v in zip(devices, values.tolist(), strict=True) if v != usual]
    return odd
