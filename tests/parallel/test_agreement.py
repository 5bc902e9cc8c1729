"""A single flipped bit of a single copy is found, and its leaf and device are named."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.agreement import bit_sum, find_parting
from parallel.mesh import device_mesh

MESH = device_mesh({"data": 2, "fsdp": 4})
# Name -> an array, and how it is split.
LEAVES = {
    "a/whole": (jnp.linspace(-3, 3, 24).reshape(8, 3), P()),
    "b/group": (jnp.linspace(-3, 3, 16, dtype=jnp.bfloat16), P("fsdp")),
    "c/alone": (jnp.arange(16.0), P(("data", "fsdp"))),
    "d/bool": (jnp.arange(6) % 2 == 0, P()),
    "e/steps": (jnp.int32(7), P()),
    "f/data": (jnp.arange(6, dtype=jnp.int8), P("data")),
}


def state_of():
    return {
        name: jax.device_put(x, NamedSharding(MESH, spec))
        for name, (x, spec) in LEAVES.items()
    }


def flipped(x: jax.Array, device: jax.Device, byte: int, bit: int) -> jax.Array:
    """Flip a bit of the part of an array that one device holds."""
    parts = []
    for shard in x.addressable_shards:
        raw = np.array(shard.data)
        if shard.device == device:
            words = raw.reshape(-1).view(np.uint8)
            words[byte % words.size] ^= 1 << bit
        parts.append(jax.device_put(raw, shard.device))
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)


def copies(name: str, device: jax.Device) -> list[jax.Device]:
    """List the devices with the same part, from the place of the device in the mesh."""
    grid = MESH.devices
    (data,), (fsdp,) = np.where(grid == device)
    return {
        "b/group": list(grid[:, fsdp]),
        "c/alone": [device],
        "f/data": list(grid[data]),
    }.get(name, list(grid.flat))


def test_each_flip_is_named():
    state = state_of()
    parting = find_parting(state)
    assert parting(state) is None
    rng = np.random.default_rng(3)
    for name in LEAVES:
        for _ in range(4):
            device = rng.choice(MESH.devices.flat)
            width = 1 if name == "d/bool" else 8
            bad = flipped(state[name], device, rng.integers(64), int(rng.integers(width)))
            found, same = parting(state | {name: bad}), copies(name, device)
            if len(same) == 1:
                assert found is None  # nothing to compare it with
                continue
            assert (found.leaf, found.num_leaves) == (name, 1)
            assert found.num_copies == len(same)
            # Of two copies, none is known to be the right one.
            assert found.devices == (same if len(same) == 2 else [device])


def test_the_first_of_several_leaves_is_named():
    state = state_of()
    parting, device = find_parting(state), MESH.devices[1, 2]
    for name in ("e/steps", "b/group", "f/data"):
        state[name] = flipped(state[name], device, 0, 0)
    found = parting(state)
    assert (found.leaf, found.num_leaves, found.num_copies) == ("b/group", 3, 2)


def test_the_sum_is_that_of_the_words():
    for x in (
        np.float32([1.5, -0.0, np.nan]),
        np.uint8([255, 3]),
        np.int32([-1, 5]),
        np.float16([2, -2]),
    ):
        words = x.view(f"u{x.dtype.itemsize}")
        expected = sum(words.astype(object)) % 2**32
        assert int(bit_sum(jnp.asarray(x))) == expected
