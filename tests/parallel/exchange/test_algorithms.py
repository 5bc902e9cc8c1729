"""Law 3: every algorithm sums as numpy does, for any size, and alike on every device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from parallel.cost.ledger import ledger
from parallel.exchange.algorithms import ALGORITHMS, sent_elements
from parallel.mesh import device_mesh
from tests.parallel.workers import run_two

SIZES = (0, 1, 7, 40)
NUM = 41  # what no degree divides
SENDS = [name for name in ALGORITHMS if name not in ("psum", "hierarchical")]
MESHES = [(1,), (2,), (3,), (4,), (5,), (6,), (8,), (2, 4), (4, 2), (3, 2)]


def mesh_of(sizes):
    names = ("slice", "data") if len(sizes) == 2 else ("data",)
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(
        sizes, names, devices=devices, axis_types=(jax.sharding.AxisType.Auto,) * len(names)
    )


def pairs():
    for sizes in MESHES:
        for name in ALGORITHMS:
            if name != "hierarchical" or len(sizes) == 2:
                yield name, sizes


def inputs(degree: int, num: int, dtype="float32") -> np.ndarray:
    rng = np.random.default_rng(num)
    return np.asarray(rng.normal(size=(degree, num)), dtype=jnp.dtype(dtype))


def spread(name: str, sizes, num_arrays: int = 1):
    """Sum arrays [N, n] over N devices; keep each device's result, [N, n]."""
    mesh = mesh_of(sizes)
    axes = mesh.axis_names

    def each(*xs):
        return tuple(ALGORITHMS[name](x[0], axes)[None] for x in xs)

    specs = (P(axes),) * num_arrays
    return jax.jit(
        jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False)
    )


def assert_sums(results, xs, rtol):
    for result, x in zip(results, xs, strict=True):
        result = np.asarray(result)
        np.testing.assert_array_equal(result, np.broadcast_to(result[:1], result.shape))
        expected = np.asarray(x, np.float64).sum(0)
        magnitude = np.abs(np.asarray(x, np.float64)).sum(0)
        error = np.abs(np.asarray(result[0], np.float64) - expected)
        assert (error <= rtol * magnitude).all()


@pytest.mark.parametrize("name, sizes", pairs())
def test_sum_on_every_device(name, sizes):
    xs = [inputs(int(np.prod(sizes)), num) for num in SIZES]
    assert_sums(spread(name, sizes, len(xs))(*xs), xs, 1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("sizes", [(2, 4), (3, 2)])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_sixteen_bits(name, sizes, dtype):
    degree = int(np.prod(sizes))
    x = inputs(degree, 40, dtype)
    (result,) = spread(name, sizes)(x)
    assert result.dtype == x.dtype
    # At most one rounding a device; those that add up in float32 round once.
    roundings = 1 if name in ("all_to_all", "all_gather") else degree
    assert_sums([result], [x], roundings * float(jnp.finfo(dtype).eps) / 2)


@pytest.mark.parametrize("sizes", [(3, 2), (2, 1)])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_device_keeps_more_bits_than_it_sends(name, sizes):
    """A compiler may skip the rounding of what is widened next; not on one device alone."""
    mesh = mesh_of(sizes)
    axes = mesh.axis_names

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=P(axes), out_specs=P(axes), check_vma=False
    )
    def widened(x):
        return ALGORITHMS[name](x[0], axes).astype(jnp.float32)[None] / 3

    result = np.asarray(jax.jit(widened)(inputs(mesh.size, 1000, "bfloat16")))
    np.testing.assert_array_equal(result, np.broadcast_to(result[:1], result.shape))


def test_float64():
    x = inputs(6, 41, "float64")
    with jax.enable_x64(True):
        for name in ALGORITHMS:
            (result,) = spread(name, (3, 2))(x)
            assert result.dtype == np.float64
            assert_sums([result], [x], 1e-15)


@pytest.mark.parametrize("name", [n for n in ALGORITHMS if n != "hierarchical"])
def test_under_pmap(name):
    x = inputs(6, 40)
    devices = jax.devices()[:6]
    step = jax.pmap(
        lambda x: ALGORITHMS[name](x, ("data",)), axis_name="data", devices=devices
    )
    assert_sums([step(x)], [x], 1e-6)


@functools.cache
def compiled(name: str, sizes, dtype: str) -> str:
    x = jax.ShapeDtypeStruct((int(np.prod(sizes)), NUM), jnp.dtype(dtype))
    return spread(name, sizes).lower(x).compile().as_text()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", SENDS)
def test_sixteen_bits_cross_the_wire_as_such(name, dtype):
    entries = ledger(compiled(name, (2, 4), dtype), mesh_of((2, 4)))
    assert {entry.dtypes for entry in entries} == {("u16",)}


@pytest.mark.parametrize("sizes", [(1,), (5,), (6,), (8,), (2, 4)])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_ledger_counts_what_the_closed_form_says(name, sizes):
    if name == "hierarchical" and len(sizes) == 1:
        pytest.skip("it needs a fast axis and a slow one")
    entries = ledger(compiled(name, sizes, "float32"), mesh_of(sizes))
    sent = sum(entry.sent_bytes for entry in entries)
    assert sent == pytest.approx(4 * sent_elements(name, NUM, sizes))


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
