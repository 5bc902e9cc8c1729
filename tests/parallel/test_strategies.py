"""Law 1: every strategy at every degree trains as one device does."""

import functools

import jax
import numpy as np
import optax
import pytest

from lm.models.setting import Setting
from lm.models.transformer.config import TransformerConfig
from parallel.strategies import EXACT, STRATEGIES
from tests.parallel.toy import (
    MODEL,
    SEQ_LEN,
    VOCAB,
    assert_equal,
    assert_overflow_skips,
    batches,
    oracle,
    toy_learner,
    toy_program,
    train,
    whole_matrix_optimizer,
)

STEPS = 5
DEGREES = (1, 2, 4, 8)
# SGD, so that an error in the gradient's scale shows; clipping couples all shards.
SGD = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.3, momentum=0.9))
NO_STEPS = optax.sgd(0.0)


# Meshes of several axes have laws of their own: test_axes.py, test_pipeline.py.
ONE_AXIS = [name for name in EXACT if set(STRATEGIES[name].axes) <= {"slice", "data"}]


@functools.cache
def one_device(dropout: float = 0.0):
    return oracle(SGD, STEPS, dropout)


def run(strategy, degree, accumulation=1, steps=STEPS, **learner):
    learner = toy_learner(SGD, **learner)
    program = toy_program(strategy, learner, data=degree, accumulation=accumulation)
    return train(program, steps)[1:]


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("strategy", ONE_AXIS)
def test_parameters_equal_one_device(strategy, degree):
    params, losses = run(strategy, degree)
    expected, expected_losses = one_device()
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_equal(params, expected)


@functools.cache
def own_initialisers():
    """Return those of a model of two layers, and what they draw on one device."""
    config = TransformerConfig(**vars(MODEL) | {"num_layers": 2})
    init = config.task(Setting(VOCAB, SEQ_LEN)).init
    return init, jax.device_get(init(jax.random.key(1)))


@pytest.mark.parametrize(
    "strategy, degrees",
    [
        ("shard_map", {"data": 4}),
        ("fsdp", {"data": 4}),
        ("hybrid", {"data": 2, "fsdp": 2, "tensor": 2}),
        ("1f1b", {"data": 2, "stage": 2, "accumulation": 2}),
    ],
)
def test_the_models_own_initialisers_draw_the_same_everywhere(strategy, degrees):
    init, expected = own_initialisers()
    learner = toy_learner(SGD, num_layers=2)._replace(init=init)
    program = toy_program(strategy, learner, **degrees)
    params = program.params(program.init(jax.random.key(1)))
    assert_equal(jax.device_get(params), expected)


@pytest.mark.parametrize("strategy", ONE_AXIS)
def test_accumulation_is_exact_with_dropout(strategy):
    # Dropout is drawn per row, so it too is the same under any split of the batch.
    params, losses = run(strategy, 4, accumulation=2, dropout=0.2)
    expected, expected_losses = one_device(0.2)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_equal(params, expected)
    without_dropout, _ = one_device()
    assert not np.allclose(params["output"]["kernel"], without_dropout["output"]["kernel"])


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_fsdp_keeps_the_rematerialisation_of_the_model(remat):
    """Its own recomputation, of gathers, must not replace the model's."""
    params, losses = run("fsdp", 4, remat=remat)
    expected, expected_losses = one_device()
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_equal(params, expected)

    def products(strategy, remat):  # in the program as written, before it is compiled
        program = toy_program(strategy, toy_learner(SGD, remat=remat), data=4)
        batch = program.place(batches(1)[0])
        written = program.step.lower(program.abstract, batch).as_text()
        return written.count("stablehlo.dot_general")

    assert products("fsdp", remat) >= products("shard_map", remat)
    assert products("shard_map", remat) > products("shard_map", "none")


@pytest.mark.parametrize("name, rate", [("lamb", 0.3), ("adafactor", 0.5), ("muon", 0.03)])
@pytest.mark.parametrize("strategy", ["zero1", "fsdp"])
def test_optimizers_that_need_whole_matrices_work_on_shards(strategy, name, rate):
    """Trust ratios, factored moments and orthogonalisation, each over a whole matrix."""
    tx = whole_matrix_optimizer(name, rate, STEPS)
    _, _, losses = train(toy_program(strategy, toy_learner(tx), data=4), STEPS)
    _, expected = oracle(tx, STEPS)
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    _, untrained = oracle(NO_STEPS, STEPS)
    assert np.abs(np.subtract(expected, untrained)).max() > 0.01


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
@pytest.mark.parametrize("strategy", ONE_AXIS)
def test_sixteen_bits_stays_near(strategy, compute):
    _, losses = run(strategy, 8, compute=compute)
    _, expected_losses = one_device()
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-2)


@pytest.mark.parametrize("strategy", EXACT)
def test_overflow_skips_the_step_everywhere(strategy):
    learner = toy_learner(SGD, compute="float16", loss_scale=2.0**24)
    program = toy_program(strategy, learner, data=4)
    before, state = assert_overflow_skips(program)
    assert state.step == 1
    for _ in range(24):  # the scale falls until the gradient fits, then training moves
        state, metrics = program.step(state, program.place(batches(1)[0]))
    assert metrics["finite"]
    assert not np.array_equal(
        jax.device_get(state.params)["output"]["kernel"],
        before.params["output"]["kernel"],
    )
