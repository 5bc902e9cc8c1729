"""Law 6: bytes per device as predicted; the compiled program holds what it should."""

import functools

import jax
import pytest

from parallel.config import ParallelConfig
from parallel.cost.closed_forms import cut_of
from parallel.cost.ledger import ARRAY, COLLECTIVE, ledger, split_computations, walk
from parallel.cost.traffic import traffic
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
from tests.parallel.toy import SEVERAL_AXES, SGD, batches, sgd_program, toy_learner

DROPOUT = {1: {}, 2: {"dropout": 0.2}}
LAYOUTS = {
    "jit": REPLICATED, "pmap": REPLICATED, "shard_map": REPLICATED,
    "zero1": ZERO1, "zero2": ZERO2, "fsdp": FSDP,
}  # fmt: skip


PROGRAMS = [(8, 1), (4, 2)]  # degree, microbatches: those that test_strategies.py trains


@functools.cache
def compiled(strategy, degree, accumulation):
    program = sgd_program(strategy, degree, accumulation, **DROPOUT[accumulation])
    batch = program.place(batches(1)[0])
    return program.step.lower(program.abstract, batch).compile()


def by_kind(program, degree):
    """Map each kind of collective of a compiled program to its elements."""
    total = {}
    for entry in ledger(program.as_text(), data_mesh(degree)):
        assert entry.axes == (AXIS,)
        total[entry.kind] = total.get(entry.kind, 0) + entry.elements
    return total


def arrays_moved(program):
    """Map each kind of collective of a compiled program to the arrays that it moves."""
    total = {}
    for line, times, *_ in walk(*split_computations(program.as_text()), 1.0):
        _, result, kind, _ = COLLECTIVE.search(line).groups()
        total[kind] = total.get(kind, 0) + times * len(ARRAY.findall(result))
    return total


def sizes():
    """Split the number of parameters into those in arrays worth sharding and the rest."""
    shapes = jax.eval_shape(toy_learner(SGD).task.init, jax.random.key(0))
    all_sizes = [x.size for x in jax.tree.leaves(shapes)]
    large = sum(n for n in all_sizes if n >= MIN_SHARDED_SIZE)
    return large, sum(all_sizes) - large


def test_every_strategy_has_a_layout_here():
    elsewhere = ["zero1_whole"]  # test_dealing.py
    assert sorted([*LAYOUTS, *elsewhere, *SEVERAL_AXES, *ORDERS]) == sorted(EXACT)


@pytest.mark.parametrize("strategy", LAYOUTS)
def test_state_bytes_per_device(strategy):
    program = sgd_program(strategy, 8)
    large, small = sizes()
    whole, shard = 4 * (large + small), 4 * (large // 8 + small)
    layout = LAYOUTS[strategy]
    params = shard if layout is FSDP else whole
    momentum = whole if layout is REPLICATED else shard
    state = program.init(jax.random.key(0))
    assert bytes_per_device(program.abstract.params) == params
    assert bytes_per_device(program.abstract.opt) == momentum
    for tree, expected in [(state.params, params), (state.opt, momentum)]:
        first = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree)]
        assert sum(first) == expected


@pytest.mark.parametrize("degree, accumulation", PROGRAMS)
@pytest.mark.parametrize("strategy", LAYOUTS)
def test_collectives_are_those_of_the_strategy(strategy, degree, accumulation):
    entries = by_kind(compiled(strategy, degree, accumulation), degree)
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


@pytest.mark.parametrize("degree, accumulation", PROGRAMS)
@pytest.mark.parametrize("strategy", LAYOUTS)
def test_a_plan_counts_the_arrays_that_cpus_send_one_by_one(strategy, degree, accumulation):
    config = ParallelConfig(strategy=strategy, accumulation=accumulation)
    task = toy_learner(SGD).task
    params = jax.eval_shape(task.init, jax.random.key(0))
    cut = cut_of(task, params, batches(1)[0], "cpu")
    planned = {}
    # SGD clips by the norm, which the step also measures.
    for part in traffic(config, params, data_mesh(degree), cut, norms=2, joins=False):
        # A sum of one number takes as long as its sends, and is an all-reduce.
        kind = "all-reduce" if part.name == "scalars" else part.kind
        planned[kind] = planned.get(kind, 0) + part.count
    found = arrays_moved(compiled(strategy, degree, accumulation))
    # FSDP gathers the layer once or twice in a microbatch, version by version.
    more = found.get("all-gather", 0) - planned.get("all-gather", 0)
    assert more in (0, accumulation if LAYOUTS[strategy] is FSDP else 0)
    assert found | {"all-gather": 0} == planned | {"all-gather": 0}


def test_shard_largest():
    assert shard_largest((64, 128), 4) == 1
    assert shard_largest((64, 128), 4, taken=1) == 0
    assert shard_largest((128, 63), 4) == 0
    assert shard_largest((127, 63), 4) is None
    assert shard_largest((8, 8), 4) is None
    assert shard_largest((64, 128), 1) is None
