"""Law 3: every algorithm sums as numpy does, for any size, and alike on every device."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from parallel.cost.ledger import ledger
from parallel.exchange.algorithms import ALGORITHMS
from parallel.mesh import device_mesh
from tests.parallel.workers import run_two

SIZES = (0, 1, 7, 41)  # none that a degree below divides, but 0
SENDS = [name for name in ALGORITHMS if name not in ("psum", "hierarchical")]
MESHES = [(1,), (8,), (3, 2)]  # one device, a power of two, none, over two axes
HALVES = ("bfloat16", "float16")


def mesh_of(sizes):
    names = ("slice", "data") if len(sizes) == 2 else ("data",)
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(
        sizes, names, devices=devices, axis_types=(jax.sharding.AxisType.Auto,) * len(names)
    )


PAIRS = [
    (name, sizes)
    for sizes in MESHES
    for name in ALGORITHMS
    if name != "hierarchical" or len(sizes) == 2
]


def inputs(degree: int, num: int, dtype="float32") -> np.ndarray:
    rng = np.random.default_rng(num)
    return np.asarray(rng.normal(size=(degree, num)), dtype=jnp.dtype(dtype))


def spread(name: str, sizes, num_arrays: int = 1):
    """Sum arrays [N, n] over N devices; keep each device's result, [N, n]."""
    mesh = mesh_of(sizes)
    axes = mesh.axis_names

    def each(*xs):
        return tuple(ALGORITHMS[name].all_reduce(x[0], axes)[None] for x in xs)

    specs = (P(axes),) * num_arrays
    return jax.jit(
        jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False)
    )


@functools.cache
def compiled(name: str, sizes, *arrays: tuple[int, str]):
    """Compile the sum of arrays of (size, type); return their values and the program."""
    xs = [inputs(int(np.prod(sizes)), *array) for array in arrays]
    return xs, spread(name, sizes, len(xs)).lower(*xs).compile()


def all_sizes(name: str, sizes):
    return compiled(name, sizes, *((num, "float32") for num in SIZES))


def both_halves(name: str):
    return compiled(name, (3, 2), *((40, dtype) for dtype in HALVES))


def assert_sums(results, xs, rtol):
    for result, x in zip(results, xs, strict=True):
        result = np.asarray(result)
        np.testing.assert_array_equal(result, np.broadcast_to(result[:1], result.shape))
        expected = np.asarray(x, np.float64).sum(0)
        magnitude = np.abs(np.asarray(x, np.float64)).sum(0)
        error = np.abs(np.asarray(result[0], np.float64) - expected)
        assert (error <= rtol * magnitude).all()


@pytest.mark.parametrize("name, sizes", PAIRS)
def test_sum_on_every_device(name, sizes):
    xs, program = all_sizes(name, sizes)
    assert_sums(program(*xs), xs, 1e-6)


@pytest.mark.parametrize("name, sizes", PAIRS)
def test_the_ledger_counts_what_the_closed_form_says(name, sizes):
    entries = ledger(all_sizes(name, sizes)[1].as_text(), mesh_of(sizes))
    sent = sum(entry.sent_bytes for entry in entries)
    elements = sum(ALGORITHMS[name].sent_elements(n, sizes) for n in SIZES)
    assert sent == pytest.approx(4 * elements)


def test_p2p_goes_from_diagonal_to_diagonal():
    """Each round has every device send once and receive once, at one distance."""
    text = all_sizes("p2p", (8,))[1].as_text()
    found = re.findall(r"source_target_pairs=\{(.*?\})\}", text)
    distances = collections.Counter()
    for pairs in found:
        ends = np.array(re.findall(r"\{(\d+),(\d+)\}", pairs), int)
        assert sorted(ends[:, 0]) == sorted(ends[:, 1]) == list(range(8))
        (distance,) = set((ends[:, 1] - ends[:, 0]) % 8)
        distances[distance] += 1
    arrays = sum(1 for num in SIZES if num)
    assert distances == dict.fromkeys(range(1, 8), 2 * arrays)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_sixteen_bits(name):
    xs, program = both_halves(name)
    # At most one rounding a device; those that add up in float32 round once.
    roundings = 1 if name in ("p2p", "all_to_all", "all_gather") else 6
    for result, x in zip(program(*xs), xs, strict=True):
        assert result.dtype == x.dtype
        assert_sums([result], [x], roundings * float(jnp.finfo(x.dtype).eps) / 2)


@pytest.mark.parametrize("name", SENDS)
def test_sixteen_bits_cross_the_wire_as_such(name):
    entries = ledger(both_halves(name)[1].as_text(), mesh_of((3, 2)))
    assert {entry.dtypes for entry in entries} == {("u16",)}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_device_keeps_more_bits_than_it_sends(name):
    """A compiler may skip the rounding of what is widened next; not on one device alone."""
    mesh = mesh_of((3, 2))
    axes = mesh.axis_names

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=P(axes), out_specs=P(axes), check_vma=False
    )
    def widened(x):
        return ALGORITHMS[name].all_reduce(x[0], axes).astype(jnp.float32)[None] / 3

    result = np.asarray(jax.jit(widened)(inputs(mesh.size, 1000, "bfloat16")))
    np.testing.assert_array_equal(result, np.broadcast_to(result[:1], result.shape))


@pytest.mark.parametrize("name", ["ring", "all_to_all", "hierarchical"])
def test_float64(name):
    x = inputs(6, 41, "float64")
    with jax.enable_x64(True):
        (result,) = spread(name, (3, 2))(x)
        assert result.dtype == np.float64
        assert_sums([result], [x], 1e-15)


def test_between_processes():
    """Two real processes of three devices each, all algorithms, held to numpy there."""
    first, second = (
        [line for line in output.splitlines() if line.startswith("sum ")]
        for output in run_two("sum_worker")
    )
    assert first == second  # the digests of the bits of each sum
    assert len(first) == 2 * len(ALGORITHMS) + len(ALGORITHMS) - 1


def test_a_mesh_of_slices_is_what_hierarchical_needs():
    mesh = device_mesh({"slice": 2, "data": 4})
    assert mesh.axis_names == ("slice", "data")
