"""Law 6: bytes per device as predicted; the compiled program holds what it should."""

import functools

import jax
import optax
import pytest

from parallel.cost.ledger import ledger
from parallel.layout import (
    FSDP,
    MIN_SHARDED_SIZE,
    REPLICATED,
    ZERO1,
    ZERO2,
    bytes_per_device,
    shard_largest,
)
from parallel.mesh import data_mesh
from parallel.pipeline.schedules import ORDERS
from parallel.program import AXIS
from parallel.strategies import EXACT
from tests.parallel.toy import SEVERAL_AXES, batches, toy_learner, toy_program

DEGREE = 4
ADAM = optax.adam(1e-2)
LAYOUTS = {
    "jit": REPLICATED, "pmap": REPLICATED, "shard_map": REPLICATED,
    "zero1": ZERO1, "zero2": ZERO2, "fsdp": FSDP,
}  # fmt: skip


@functools.cache
def compiled(strategy, accumulation=1):
    program = toy_program(
        strategy, toy_learner(ADAM), data=DEGREE, accumulation=accumulation
    )
    batch = program.place(batches(1)[0])
    return program, program.step.lower(program.abstract, batch).compile()


def by_kind(program, degree):
    """Map each kind of collective of a compiled program to its elements."""
    total = {}
    for entry in ledger(program.as_text(), data_mesh(degree)):
        assert entry.axes == (AXIS,)
        total[entry.kind] = total.get(entry.kind, 0) + entry.elements
    return total


def sizes():
    """Split the number of parameters into those in arrays worth sharding and the rest."""
    shapes = jax.eval_shape(toy_learner(ADAM).init, jax.random.key(0))
    all_sizes = [x.size for x in jax.tree.leaves(shapes)]
    large = sum(n for n in all_sizes if n >= MIN_SHARDED_SIZE)
    return large, sum(all_sizes) - large


def test_every_strategy_has_a_layout_here():
    assert [*LAYOUTS, *SEVERAL_AXES, *ORDERS] == EXACT


@pytest.mark.parametrize("strategy", LAYOUTS)
def test_state_bytes_per_device(strategy):
    program, _ = compiled(strategy)
    large, small = sizes()
    whole, shard = 4 * (large + small), 4 * (large // DEGREE + small)
    layout = LAYOUTS[strategy]
    params = shard if layout is FSDP else whole
    moments = 2 * (whole if layout is REPLICATED else shard) + 4  # and Adam's count
    state = program.init(jax.random.key(0))
    assert bytes_per_device(program.abstract.params) == params
    assert bytes_per_device(program.abstract.opt) == moments
    for tree, expected in [(state.params, params), (state.opt, moments)]:
        first = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree)]
        assert sum(first) == expected


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("strategy", LAYOUTS)
def test_collectives_are_those_of_the_strategy(strategy, accumulation):
    _, program = compiled(strategy, accumulation)
    entries = by_kind(program, DEGREE)
    large, small = sizes()
    layout = LAYOUTS[strategy]
    if layout is REPLICATED:
        assert entries.keys() == {"all-reduce"}
        # GSPMD sums over devices in each microbatch, the replicas once.
        times = accumulation if strategy == "jit" else 1
        slack = entries["all-reduce"] - times * (large + small)
        assert 0 < slack < 100  # the loss's sums, one by one
        return
    assert entries.keys() == {"all-reduce", "all-gather", "reduce-scatter"}
    scatters = 1 if layout is ZERO1 else accumulation
    assert entries["reduce-scatter"] == scatters * large
    # FSDP gathers for the forward and the backward pass of each microbatch; compilers for
    # CPUs merge some of these gathers, version by version.
    most = 2 * accumulation if layout is FSDP else 1
    assert large <= entries["all-gather"] <= most * large
    slack = entries["all-reduce"] - small
    assert 0 < slack < 100  # the loss's sums and each shard's part of the norm


def test_shard_largest():
    assert shard_largest((), (64, 128), 4) == 1
    assert shard_largest((), (64, 128), 4, taken=1) == 0
    assert shard_largest((), (128, 63), 4) == 0
    assert shard_largest((), (127, 63), 4) is None
    assert shard_largest((), (8, 8), 4) is None
    assert shard_largest((), (64, 128), 1) is None


def test_fsdp_asks_for_each_gather_twice():
    """The program as written, before any compiler merges: forward, then recomputed."""
    program = toy_program("fsdp", toy_learner(ADAM), data=DEGREE)
    batch = program.place(batches(1)[0])
    written = program.step.lower(program.abstract, batch).as_text()
    shapes = jax.tree.leaves(program.abstract.params)
    num_sharded = sum(x.size >= MIN_SHARDED_SIZE for x in shapes)
    forward = num_sharded
    # Of the last product, the backward pass needs no parameter that it has not gathered.
    assert 2 * forward - 1 <= written.count("stablehlo.all_gather") <= 2 * forward
    assert written.count("stablehlo.reduce_scatter") == num_sharded
