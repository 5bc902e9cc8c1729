"""Law 3: every algorithm sums as numpy does, for any size, and alike on every device."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from parallel.algorithms import ALGORITHMS, sent_elements
from parallel.mesh import device_mesh

SIZES = (0, 1, 7, 40)
MESHES = [(1,), (2,), (3,), (5,), (8,), (2, 4), (4, 2), (3, 2)]
WIDTH = {"float32": 32, "bfloat16": 16, "float16": 16}


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
@pytest.mark.parametrize("name", ALGORITHMS)
def test_sixteen_bits(name, dtype):
    sizes = (2, 4)
    x = inputs(8, 40, dtype)
    (result,) = spread(name, sizes)(x)
    assert result.dtype == x.dtype
    # At most one rounding a device; those that add up in float32 round once.
    roundings = 1 if name in ("all_to_all", "all_gather") else 8
    assert_sums([result], [x], roundings * float(jnp.finfo(dtype).eps) / 2)


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
    x = jax.ShapeDtypeStruct((int(np.prod(sizes)), 40), jnp.dtype(dtype))
    return spread(name, sizes).lower(x).compile().as_text()


MOVES = re.compile(
    r"= \(?([a-z]+\d+)\[.*?\b"
    r"(all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute)\("
)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["ring", "tree", "all_to_all", "all_gather", "p2p"])
def test_sixteen_bits_cross_the_wire_as_such(name, dtype):
    types = {m[1] for m in MOVES.finditer(compiled(name, (2, 4), dtype))}
    assert types == {"u16"}


@pytest.mark.parametrize("sizes", [(8,), (6,), (2, 4)])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_elements_sent_are_those_of_the_closed_form(name, sizes):
    """Counted from the pairs, shapes and loops of the program as it was compiled."""
    if name == "psum" or (name == "hierarchical" and len(sizes) == 1):
        pytest.skip("the compiler's, or without a fast axis")
    degree = int(np.prod(sizes))
    total = 0.0
    hlo = compiled(name, sizes, "float32")
    for line in hlo.splitlines():
        if not (m := MOVES.search(line)):
            continue
        shape = re.search(r"f32\[([\d,]*)\]", line)[1]
        elements = int(np.prod([int(n) for n in shape.split(",") if n]))
        if "all-to-all(" in line:  # a tuple of chunks, or one array of them
            elements *= len(re.findall(r"f32\[", line.split("all-to-all(")[0]))
        times = degree - 1 if name == "ring" else 1
        group = (
            len(re.search(r"replica_groups=\{\{([\d,]*)\}", line)[1].split(","))
            if ("replica_groups={{" in line)
            else degree
        )
        share = (group - 1) / group
        total += (
            times
            * {
                "collective-permute": elements
                * len(re.findall(r"\{\d+,\d+\}", line.split("source_target_pairs=")[-1]))
                / degree,
                "all-reduce": 2 * elements * share,
                "all-gather": elements * share,
                "all-to-all": elements * share,
                "reduce-scatter": elements * (group - 1),
            }[m[2]]
        )
    assert total == pytest.approx(sent_elements(name, 40, sizes))


def test_a_mesh_of_slices_is_what_hierarchical_needs():
    mesh = device_mesh({"slice": 2, "data": 4})
    assert mesh.axis_names == ("slice", "data")
