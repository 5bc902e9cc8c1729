"""Law 1 for pipelines, law 2 of one stage, and the memory that each schedule promises."""

import functools

import jax
import numpy as np
import optax
import pytest

from lm.optim import OptimConfig, optimizer
from lm.optimizers import OPTIMIZERS
from parallel.mesh import part_of
from parallel.pipeline.schedules import ORDERS
from parallel.pipeline.stacking import STACK, build_stacking
from tests.parallel.toy import (
    SGD,
    assert_equal,
    assert_overflow_skips,
    batches,
    oracle,
    toy_learner,
    toy_program,
    toy_task,
    train,
    weighted_batches,
)

STEPS, LAYERS = 3, 4
MESHES = [(1, 4, 4), (2, 2, 2)]  # data, stage, microbatches


@functools.cache
def one_device(batches=batches, **model):
    return oracle(SGD, STEPS, batches, num_layers=LAYERS, **model)


def program(strategy, data=1, stage=2, accumulation=4, tx=SGD, chunks=0, **learner):
    learner = toy_learner(tx, **{"num_layers": LAYERS} | learner)
    return toy_program(
        strategy, learner, data=data, stage=stage, accumulation=accumulation,
        chunks=chunks or LAYERS // stage,
    )  # fmt: skip


def assert_trains_as_one_device(program, batches=batches, **model):
    _, params, losses = train(program, STEPS, batches)
    expected, expected_losses = one_device(batches, **model)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_equal(params, expected)


@pytest.mark.parametrize("data, stage, accumulation", MESHES)
@pytest.mark.parametrize("strategy", ORDERS)
def test_parameters_equal_one_device(strategy, data, stage, accumulation):
    assert_trains_as_one_device(program(strategy, data, stage, accumulation))


@pytest.mark.parametrize("strategy", ["gpipe", "interleaved"])
def test_one_stage_is_no_pipeline(strategy):
    assert_trains_as_one_device(program(strategy, stage=1, accumulation=2))


@pytest.mark.parametrize("model", [
    {"dropout": 0.2, "remat": "full"},
    # Without biases: that of the keys, unrotated, has no gradient but rounding errors.
    {"tied": True, "positions": "learned", "scan_layers": True, "bias": False},
])  # fmt: skip
def test_every_model_is_cut_exactly(model):
    """Dropout and positions are a row's and a layer's own; tied embeddings lie apart."""
    made = program("interleaved", 2, 2, 2, **model)
    assert_trains_as_one_device(made, weighted_batches, **model)
    other = one_device()[1]
    assert not np.allclose(one_device(weighted_batches, **model)[1], other)


def test_sixteen_bits_stays_near():
    _, _, losses = train(program("1f1b", compute="bfloat16"), STEPS)
    np.testing.assert_allclose(losses, one_device()[1], rtol=2e-2)


def test_overflow_skips_the_step_on_every_stage():
    assert_overflow_skips(program("1f1b", compute="float16"))


def test_each_stage_holds_its_layers_alone():
    state = program("gpipe", stage=4).abstract
    for tree in (state.params, state.opt):
        stacks = [x for path, x in jax.tree.leaves_with_path(tree) if STACK in str(path)]
        assert stacks
        for x in stacks:
            assert x.sharding.shard_shape(x.shape) == (1, *x.shape[1:])


def test_memory_grows_with_microbatches_in_gpipe_alone():
    def temporaries(strategy: str, accumulation: int) -> int:
        pipeline = program(strategy, accumulation=accumulation, num_layers=2)
        rows = batches(1)[0]
        # The same rows in each microbatch, whatever their number.
        rows = {
            k: np.tile(v[:2], (accumulation, *[1] * (v.ndim - 1))) for k, v in rows.items()
        }
        compiled = pipeline.step.lower(pipeline.abstract, pipeline.place(rows)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    carry = 2 * 16 * 32 * 4  # bytes of one input: 2 rows of 16 positions, width 32
    growth = {
        name: temporaries(name, 8) - temporaries(name, 2)
        for name in ORDERS
        if name != "interleaved"
    }
    assert growth["gpipe"] - growth["1f1b"] >= 0.9 * 6 * carry
    assert growth["1f1b"] < carry


def assert_round_trip(stacking):
    """Every leaf, told apart by its values, comes back to its place."""
    values = iter(range(1, 10**6))
    state = jax.tree.map(
        lambda x: (
            np.full(x.shape, next(values), x.dtype)
            + np.arange(x.size).reshape(x.shape).astype(x.dtype) % 97
        ),
        stacking.saved,
    )
    there = stacking.adopt(state)
    shapes = jax.eval_shape(stacking.init, jax.random.key(0))
    assert jax.tree.map(np.shape, there) == jax.tree.map(np.shape, shapes)
    jax.tree.map(np.testing.assert_array_equal, stacking.portable(there), state)


@pytest.mark.parametrize(
    "name, scan_layers", [*((n, False) for n in OPTIMIZERS), ("muon", True)]
)
def test_the_state_goes_to_the_ordinary_tree_and_back(name, scan_layers):
    config = OptimConfig(name=name, clip_adaptive=0.1, schedule="plateau")
    tx = optimizer(config, STEPS, toy_task().hidden)
    learner = toy_learner(tx, num_layers=LAYERS, scan_layers=scan_layers)
    assert_round_trip(build_stacking(learner, np.array([2, 0, 3, 1])))


def test_an_optimizer_that_mixes_layers_is_refused():
    """Factored moments of a stack are not those of its layers."""
    learner = toy_learner(optax.adafactor(min_dim_size_to_factor=8), num_layers=LAYERS)
    with pytest.raises(ValueError, match="v_row.*choose another optimizer"):
        build_stacking(learner, np.arange(LAYERS))


def test_a_pipeline_takes_over_and_hands_back():
    """From one device, through a pipeline, to one device: the moments go along."""
    config = OptimConfig(name="muon", schedule="constant")
    tx = optimizer(config, STEPS, toy_task().hidden)
    model = {"num_layers": LAYERS, "scan_layers": True}  # quicker to compile
    pipeline = program("interleaved", accumulation=2, tx=tx, **model)
    plain = toy_program("jit", toy_learner(tx, **model), data=1)
    state = plain.init(jax.random.key(1))
    first, second, third = batches(STEPS)
    state, _ = plain.step(state, plain.place(first))
    copies = jax.device_get(state)
    state = pipeline.adopt(jax.device_put(copies, shardings_of(pipeline.saved)))
    state, _ = pipeline.step(state, pipeline.place(second))
    state = jax.device_put(
        jax.device_get(pipeline.portable(state)), shardings_of(plain.abstract)
    )
    state, metrics = plain.step(state, plain.place(third))
    expected, losses = oracle(tx, STEPS, **model)
    assert float(metrics["loss"] / metrics["tokens"]) == pytest.approx(losses[-1], rel=1e-5)


def shardings_of(abstract):
    return jax.tree.map(lambda x: x.sharding, abstract)


@pytest.mark.parametrize("strategy, config, message", [
    ("gpipe", {"stage": 4, "num_layers": 6}, "num_layers 6 .*stage 4"),
    ("interleaved", {"stage": 2, "chunks": 4}, "num_layers 4 .*stage 2 .*chunks 4 = 8"),
    ("interleaved", {"stage": 2, "accumulation": 1}, "accumulation 1 .*stage 2"),
    ("1f1b", {"data": 2, "accumulation": 16}, "16 .* 2"),
    ("1f1b", {"stage": 3}, "stage 3.* 8 "),
])  # fmt: skip
def test_bad_input_names_both_numbers(strategy, config, message):
    with pytest.raises(ValueError, match=message):
        program(strategy, **config)


@pytest.mark.parametrize("places, parts", [
    ([{0}, {1}], [(0, 2), (1, 2)]),  # data alone
    ([{0}, {0}], [(0, 1), (0, 1)]),  # two stages
    ([{0, 1}, {0, 1}, {2, 3}, {2, 3}], [(0, 2), (0, 2), (1, 2), (1, 2)]),
])  # fmt: skip
def test_processes_take_the_rows_of_their_devices(places, parts):
    places, degree = dict(enumerate(places)), len(set().union(*places))
    assert [part_of(places, process, degree) for process in places] == parts


@pytest.mark.parametrize("places", [[{0, 2}, {1, 3}], [{0, 1, 2}, {3}], [{1, 2}, {0, 3}]])
def test_processes_whose_rows_lie_apart_are_refused(places):
    with pytest.raises(ValueError, match=r" 4 "):
        part_of(dict(enumerate(places)), 0, 4)


def test_a_task_without_stages_is_refused():
    learner = toy_learner(SGD)
    learner = learner._replace(task=learner.task._replace(stages=None))
    with pytest.raises(ValueError, match="stage"):
        toy_program("gpipe", learner, data=1, stage=2)
