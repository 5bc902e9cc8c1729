"""Law 4: codecs lose nothing but time, and err no more than their bounds."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from parallel.cost.ledger import item_bytes
from parallel.exchange.codec import Across, hierarchical
from parallel.exchange.config import CODECS, ExchangeConfig
from parallel.exchange.transforms import compressed

ARGUMENTS = {
    "bfloat16": {}, "int8": {"block": 32}, "int4": {"block": 32},
    "int2": {"block": 32}, "ternary": {"block": 50}, "sign": {"block": 32},
    "majority_vote": {},
    "top_k": {"keep": 0.1}, "chunk_top_k": {"keep": 0.02}, "random_k": {"keep": 0.1},
    "dgc": {"keep": 0.05, "momentum": 0.5, "warmup_steps": 4},
    "power_sgd": {"rank": 2},
}  # fmt: skip
MESHES = {"1": (1,), "4": (4,), "2x4": (2, 4), "2x4 flat": (2, 4)}
DGC = "dgc"
NONLINEAR = [name for name in CODECS if name not in ("random_k", "power_sgd")]
CASES = [(name, "4") for name in CODECS] + [(name, "2x4") for name in NONLINEAR]
# One device alone, and two axes at once: one codec of each way to travel.
CASES += [
    (name, mesh) for name in ("int8", "top_k", "power_sgd") for mesh in ("1", "2x4 flat")
]
SHAPES = {"bias": (7,), "conv": (3, 3, 5, 4), "kernel": (24, 17), "scale": ()}


def make(name, error_feedback="auto"):
    config = ExchangeConfig(error_feedback=error_feedback, **ARGUMENTS[name])
    return CODECS[name](config)


def codec_of(name, mesh="4", error_feedback="auto"):
    codec = make(name, error_feedback)
    return hierarchical(codec, 4) if mesh == "2x4" else codec


def axes_of(mesh):
    return ("slice", "data")[-len(MESHES[mesh]) :]


def draw(mesh="4", seed=0, shapes=SHAPES):
    """Draw a tree for every replica, stacked: not centred, and of unequal sizes."""
    rng, num = np.random.default_rng(seed), math.prod(MESHES[mesh])
    return {
        name: rng.standard_t(3, (num, *shape)).astype(np.float32) + np.float32(0.3)
        for name, shape in shapes.items()
    }


def mesh_of(mesh):
    axes, sizes = axes_of(mesh), MESHES[mesh]
    return jax.make_mesh(
        sizes, axes, devices=jax.devices()[: math.prod(sizes)],
        axis_types=(AxisType.Auto,) * len(axes),
    )  # fmt: skip


def spread(one_replica, mesh):
    """Run `one_replica(tree, state, key)` on a mesh, on what is stacked by replica."""
    axes = axes_of(mesh)

    def each(stacked, key):
        tree, state = jax.tree.map(lambda x: x[0], stacked)
        return jax.tree.map(lambda x: x[None], one_replica(tree, state, key))

    return jax.jit(
        jax.shard_map(
            each, mesh=mesh_of(mesh), in_specs=(P(axes), P()), out_specs=P(axes),
            check_vma=False,
        )
    )  # fmt: skip


def initial(transformation, stacked):
    """Return the state of every replica, from shapes alone."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked)
    num = jax.tree.leaves(stacked)[0].shape[0]
    return jax.tree.map(lambda x: np.stack([x] * num), transformation.init(shapes)), shapes


@functools.cache
def summing(name, mesh, error_feedback="auto"):
    """Return the codec, and the exchange that keeps what it loses."""
    codec = codec_of(name, mesh, error_feedback)
    exchange = compressed(codec, axes_of(mesh))

    def one_replica(tree, comm, key):
        return exchange.update(tree, comm, weight=1.0, key=key)

    return codec, exchange, spread(one_replica, mesh)


def run(name, mesh, stacked, comm=None, seed=0, error_feedback="auto"):
    """Return the total, and what each replica keeps: its residual, the codec's state."""
    _, exchange, summed = summing(name, mesh, error_feedback)
    comm = initial(exchange, stacked)[0] if comm is None else comm
    return jax.device_get(summed((stacked, comm), jax.random.key(seed)))


def joined(stacked):
    """Return [replicas, n], leaves in the order of the tree."""
    leaves = jax.tree.leaves(stacked)
    return np.concatenate([np.reshape(x, (x.shape[0], -1)) for x in leaves], axis=1)


def assert_conserved(inputs, total, residual, rtol=2e-6):
    """Check total + sum of residuals = sum of inputs, in units of the largest addend."""
    expected = inputs.astype(np.float64).sum(0)
    found = total.astype(np.float64) + residual.astype(np.float64).sum(0)
    scale = np.abs(inputs).max() * len(inputs)
    flushed = 2 * len(inputs) * np.finfo(np.float32).tiny  # subnormal numbers become zeros
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * scale + flushed)


def assert_same_everywhere(total):
    for leaf in jax.tree.leaves(total):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


def test_every_codec_is_tested():
    assert ARGUMENTS.keys() == CODECS.keys()


def unsent(name, comm):
    """Return what the replicas have kept of their inputs, [replicas, n]."""
    codec = comm["codec"]
    if name == DGC:
        return (codec["shard"] if isinstance(codec, dict) else codec).unsent
    return joined(comm["residual"])


@pytest.mark.parametrize("name, mesh", CASES)
def test_nothing_is_lost_and_all_replicas_agree(name, mesh):
    stacked = draw(mesh)
    total, comm = run(name, mesh, stacked)
    assert_same_everywhere(total)
    for tree in (total, comm["residual"]):
        for x, like in zip(jax.tree.leaves(tree), jax.tree.leaves(stacked), strict=True):
            assert x.shape == like.shape and x.dtype == like.dtype
    kept = unsent(name, comm)
    if name == DGC:
        assert not joined(comm["residual"]).any()
    if (name, mesh) == (DGC, "2x4"):  # four shards, each on two devices of two slices
        kept = kept.reshape(2, -1)[:, : joined(stacked).shape[1]]
    assert_conserved(joined(stacked), joined(total)[0], kept)
    if mesh != "1":  # compression that changes nothing would pass the laws
        error = np.abs(joined(total)[0] - joined(stacked).sum(0)).max()
        assert error > 1e-3


@pytest.mark.parametrize(
    "name, mesh", [c for c in CASES if c[1] in ("4", "2x4") and c[0] != DGC]
)
def test_error_feedback_conserves_over_steps(name, mesh):
    comm, inputs, totals = None, 0, 0
    for step in range(5):
        fresh = draw(mesh, seed=step)
        total, comm = run(name, mesh, fresh, comm, seed=step)
        inputs, totals = inputs + joined(fresh), totals + joined(total)[0]
    assert_conserved(inputs, totals, joined(comm["residual"]), rtol=5e-6)


@pytest.mark.parametrize("name", CODECS)
def test_what_is_not_finite_shows(name):
    for value in (np.nan, np.inf, -np.inf):
        stacked = draw()
        stacked["kernel"][2, 11, 3] = value
        total, _ = run(name, "4", stacked)
        assert not np.isfinite(joined(total)).all()


@pytest.mark.parametrize("name", CODECS)
def test_huge_and_tiny_numbers_are_conserved_and_zeros_are_zeros(name):
    for size in np.float32([1e36, 1e-30, 1e-36, 0.0]):
        stacked = {leaf: x / np.abs(x).max() * size for leaf, x in draw().items()}
        total, comm = run(name, "4", stacked)
        assert np.isfinite(joined(total)).all()
        assert_conserved(joined(stacked), joined(total)[0], unsent(name, comm))
    assert not joined(total).any() and not joined(comm["residual"]).any()


@pytest.mark.parametrize("name", CODECS)
def test_one_element(name):
    stacked = draw(shapes={"scale": ()})
    total, comm = run(name, "4", stacked)
    assert_same_everywhere(total)
    assert_conserved(joined(stacked), joined(total)[0], unsent(name, comm))


# The others flatten the tree as int8 does.
@pytest.mark.parametrize("name", ["int8", DGC, "power_sgd"])
def test_leaves_keep_their_types(name):
    stacked = draw()
    stacked["kernel"] = stacked["kernel"].astype(jnp.bfloat16)
    total, comm = run(name, "4", stacked)
    for tree in (total, comm["residual"]):
        assert tree["kernel"].dtype == jnp.bfloat16 and tree["conv"].dtype == np.float32


@pytest.mark.parametrize("name", [name for name in CODECS if name not in NONLINEAR])
def test_linear_codes_are_summed_by_the_algorithm_given(name):
    codec, stacked = codec_of(name), draw()
    shapes = []

    def gathering(x_n, axes):
        shapes.append(x_n.shape)
        return jax.lax.all_gather(x_n, axes).sum(0)

    def one_replica(tree, state, key):
        return codec.sum(tree, state, key, Across(("data",), gathering))

    state, _ = initial(codec, stacked)
    summed = spread(one_replica, "4")
    lowered = summed.lower((stacked, state), jax.random.key(0)).as_text()
    assert "stablehlo.all_reduce" not in lowered
    assert len(shapes) == WIRE[name][1] and all(len(shape) == 1 for shape in shapes)
    total, _, _ = summed((stacked, state), jax.random.key(0))
    expected, _ = run(name, "4", stacked)
    np.testing.assert_allclose(joined(total), joined(expected), rtol=1e-4, atol=1e-4)


def test_codecs_run_under_pmap():
    codec = codec_of("int8")
    stacked = draw()
    summed = jax.pmap(
        lambda tree, key: codec.sum(tree, (), key, Across(("data",))),
        axis_name="data", in_axes=(0, None), devices=jax.devices()[:4],
    )  # fmt: skip
    total, _, _ = jax.device_get(summed(stacked, jax.random.key(0)))
    np.testing.assert_array_equal(joined(total), joined(run("int8", "4", stacked)[0]))


# What crosses the wire.

COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all)(?:-start)?\((.*)"
)
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
WIRE = {
    "bfloat16": ({"u16"}, 2), "int8": ({"u8"}, 2),
    "int4": ({"u8"}, 2), "int2": ({"u8"}, 2), "ternary": ({"u8", "u32", "f32"}, 4),
    "sign": ({"u8"}, 2),
    "majority_vote": ({"u8"}, 2), "top_k": ({"u16"}, 1),
    "chunk_top_k": ({"u8"}, 1), "random_k": ({"f32"}, 1),
    DGC: ({"u16"}, 1), "power_sgd": ({"f32"}, 2),
}  # fmt: skip


def wire(name, mesh, shapes=SHAPES):
    """Return (kind, element types, bytes a device sends) of each collective compiled."""
    codec, exchange, summed = summing(name, mesh)
    stacked = draw(mesh, shapes=shapes)
    comm, shapes = initial(exchange, stacked)
    text = summed.lower((stacked, comm), jax.random.key(0)).compile().as_text()
    crossings = []
    for line in text.splitlines():
        if not (found := COLLECTIVE.search(line)) or "/warmup/" in line:
            continue
        arrays = ARRAY.findall(found[1])
        num_bytes = sum(
            item_bytes(dtype) * math.prod(map(int, filter(None, dims.split(","))))
            for dtype, dims in arrays
        )
        degree = group_size(found[3])
        share = (degree - 1) / degree
        factor = {"all-reduce": 2 * share, "reduce-scatter": degree - 1}.get(
            found[2], share
        )
        crossings.append((found[2], {dtype for dtype, _ in arrays}, factor * num_bytes))
    return crossings, codec.sent_bytes(shapes, math.prod(MESHES[mesh]))


def group_size(attributes):
    """Read how many devices a collective spans, in each notation of groups."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(found[1])
    degrees, axes = re.search(
        r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes
    ).groups()
    degree_of = dict(pair.split("=") for pair in degrees.split(","))
    return math.prod(int(degree_of[axis]) for axis in axes.split(","))


@pytest.mark.parametrize("name", CODECS)
def test_small_types_cross_the_wire_and_the_closed_form_counts_them(name):
    crossings, sent_bytes = wire(name, "4")
    types, count = WIRE[name]
    assert len(crossings) == count
    assert set.union(*(dtypes for _, dtypes, _ in crossings)) == types
    assert sum(num_bytes for _, _, num_bytes in crossings) == pytest.approx(sent_bytes)


@pytest.mark.parametrize("name", NONLINEAR)
def test_hierarchical_bytes_are_float32_within_and_small_between(name):
    crossings, sent_bytes = wire(name, "2x4")
    types, count = WIRE[name]
    # Within the groups: the scatter and the gather of float32.
    assert len(crossings) == 2 + count
    assert set.union(*(dtypes for _, dtypes, _ in crossings)) == types | {"f32"}
    assert sum(num_bytes for _, _, num_bytes in crossings) == pytest.approx(sent_bytes)


def test_an_element_of_a_chunk_costs_fourteen_bits():
    shapes = {"embedding": (300, 300)}  # 22 chunks, 82 elements of each
    crossings, sent_bytes = wire("chunk_top_k", "4", shapes)
    assert crossings[0][2] == sent_bytes == 3 * (22 * 82 * 14 / 8 + 22 * 8)


def test_large_arrays_have_wide_indices():
    shapes = {"embedding": (300, 300)}
    crossings, sent_bytes = wire("top_k", "4", shapes)
    assert [(kind, dtypes) for kind, dtypes, _ in crossings] == [("all-gather", {"u32"})]
    assert crossings[0][2] == sent_bytes == 3 * 9000 * 8


def test_default_codes_shrink_a_large_tree_by_their_bits():
    # Ternary: 1.6 bits an element there, and a seventh of 32 bits for a sum of 8 replicas.
    ratios = {
        "bfloat16": 2,
        "int8": 3.93,
        "int4": 7.1,
        "int2": 15.5,
        "ternary": 10.16,
        "sign": 30.8,
    }
    params = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    exact = 2 * 4 * 1000 * 1000 * 7 / 8  # of a ring all-reduce
    for name, ratio in ratios.items():
        sent = CODECS[name](ExchangeConfig()).sent_bytes(params, 8)
        assert exact / sent == pytest.approx(ratio, rel=5e-3)
