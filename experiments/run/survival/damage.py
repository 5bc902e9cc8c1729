"""What faults do to files and to arrays in memory."""

import pathlib
from typing import Any

import jax
import numpy as np

from experiments.processes.faults import FlippedParameter


def checkpoints(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Return the folders of the complete checkpoints, the newest last."""
    found = [f for f in (workdir / "checkpoints").glob("*") if f.name.isdigit()]
    return sorted(found, key=lambda folder: int(folder.name))


def largest_file(workdir: pathlib.Path) -> pathlib.Path:
    """Return the largest file of arrays of the newest complete checkpoint."""
    files = [file for file in checkpoints(workdir)[-1].rglob("d/*") if file.is_file()]
    return max(files, key=lambda file: (file.stat().st_size, file))


def flip_in_file(file: pathlib.Path, at: int, bit: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(at)
        (byte,) = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte ^ 1 << bit % 8]))


def flip_in_tree(tree: Any, device: jax.Device, fault: FlippedParameter) -> Any:
    """Flip a bit of what one device holds of one of the leaves."""
    leaves, structure = jax.tree.flatten(tree)
    here = [i for i, leaf in enumerate(leaves) if device in leaf.sharding.device_set]
    at = here[fault.leaf % len(here)]
    leaves[at] = flipped(leaves[at], device, fault.element, fault.bit)
    return structure.unflatten(leaves)


def flipped(x: jax.Array, device: jax.Device, element: int, bit: int) -> jax.Array:
    """Flip a bit of an element of the part of an array that one device holds."""
    parts = []
    for shard in x.addressable_shards:
        part = shard.data
        if shard.device == device:
            raw = np.array(part)
            width = raw.dtype.itemsize
            words = raw.reshape(-1).view(f"u{width}")
            words[element % words.size] ^= words.dtype.type(1 << bit % (8 * width))
            part = jax.device_put(raw, device)
        parts.append(part)
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)
