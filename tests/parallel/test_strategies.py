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
    SGD,
    STEPS,
    VOCAB,
    assert_equal,
    assert_overflow_skips,
    batches,
    one_device,
    oracle,
    sgd_program,
    toy_learner,
    toy_program,
    train,
    weighted_batches,
    whole_matrix_optimizer,
)

NO_STEPS = optax.sgd(0.0)

# Meshes of several axes have laws of their own: test_axes.py, test_pipeline.py.
ONE_AXIS = [name for name in EXACT if set(STRATEGIES[name].axes) <= {"slice", "data"}]


def assert_trains_as_one_device(program, batches=batches, **model):
    _, params, losses = train(program, batches=batches)
    expected, expected_losses = one_device(batches, **model)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_equal(params, expected)


@pytest.mark.parametrize("degree", [1, 8])
@pytest.mark.parametrize("strategy", ONE_AXIS)
def test_parameters_equal_one_device(strategy, degree):
    assert_trains_as_one_device(sgd_program(strategy, degree))


@pytest.mark.parametrize("strategy", ONE_AXIS)
def test_accumulation_is_exact_with_dropout_and_weights(strategy):
    # Dropout is drawn per row, so it too is the same under any split of the batch.
    program = sgd_program(strategy, 4, 2, dropout=0.2)
    assert_trains_as_one_device(program, weighted_batches, dropout=0.2)
    (dropped, _), (whole, _) = one_device(weighted_batches, dropout=0.2), one_device()
    assert not np.allclose(dropped["output"]["kernel"], whole["output"]["kernel"])


def test_laws_of_weights():
    """Equal weights are none, only their proportion counts, and 0 takes a token out."""
    program = sgd_program("shard_map", 4, 2, dropout=0.2)

    def after(change):
        return train(program, 2, lambda num: [change(b) for b in weighted_batches(num)])

    def weighing(factor):
        return after(lambda b: b | {"weights": b["weights"] * np.float32(factor)})

    def alike(weight):
        return after(lambda b: b | {"weights": np.full_like(b["weights"], weight)})

    def without(batch):
        whole = batch["weights"].any(1)
        return batch | {"segments": batch["segments"] * whole[:, None]}

    ones, weighted = alike(1.0), weighing(1.0)
    plain = train(program, 2)
    np.testing.assert_allclose(ones[2], plain[2], rtol=1e-6)
    assert_equal(ones[1], plain[1], rtol=1e-6)
    for same, as_this in [
        (alike(2.0), ones), (weighing(2.0**-20), weighted), (after(without), weighted)
    ]:  # fmt: skip
        jax.tree.map(np.testing.assert_array_equal, same[1:], as_this[1:])
    assert not np.allclose(weighted[2], ones[2], rtol=1e-3)


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
        ("hybrid", {"data": 2, "fsdp": 2, "tensor": 2}),
        ("1f1b", {"data": 2, "stage": 2, "accumulation": 2}),
    ],
)
def test_the_models_own_initialisers_draw_the_same_everywhere(strategy, degrees):
    init, expected = own_initialisers()
    learner = toy_learner(SGD, num_layers=2)
    learner = learner._replace(task=learner.task._replace(init=init))
    program = toy_program(strategy, learner, **degrees)
    params = program.params(program.init(jax.random.key(1)))
    assert_equal(jax.device_get(params), expected)


@pytest.mark.parametrize(
    "strategy, degrees",
    [
        ("hybrid", {"data": 2, "fsdp": 2, "tensor": 2}),
        ("1f1b", {"data": 2, "stage": 2, "accumulation": 2}),
    ],
)
def test_a_model_of_the_hub_trains_as_on_one_device(strategy, degrees):
    """Heads of their own width, with norms, and a window in the second layer alone."""
    model = dict(
        num_layers=2, head_width=12, head_norm=True, window=3, window_from=1,
        attention_bias="inputs", vocab_rows=VOCAB + 4,
    )  # fmt: skip
    program, one = (
        toy_program(name, toy_learner(SGD, **model), **size)
        for name, size in ((strategy, degrees), ("jit", {"data": 1}))
    )
    assert_equal(train(program, 2)[1], train(one, 2)[1])


def test_fsdp_keeps_the_rematerialisation_of_the_model():
    """Its own recomputation, of gathers, must not replace the model's."""
    assert_trains_as_one_device(sgd_program("fsdp", 4, remat="full"))

    def products(strategy, remat):  # in the program as written, before it is compiled
        program = sgd_program(strategy, 4, remat=remat)
        batch = program.place(batches(1)[0])
        written = program.step.lower(program.abstract, batch).as_text()
        return written.count("stablehlo.dot_general")

    for strategy in ("shard_map", "fsdp"):
        none, dots, full = (products(strategy, x) for x in ("none", "dots", "full"))
        assert none < dots < full, strategy  # dots runs those of attention again


@pytest.mark.parametrize(
    "strategy, name, rate", [("zero1", "lamb", 0.3), ("fsdp", "adafactor", 0.5)]
)
def test_optimizers_that_need_whole_matrices_work_on_shards(strategy, name, rate):
    """Trust ratios and factored moments, each over a whole matrix; Muon: test_axes.py."""
    tx = whole_matrix_optimizer(name, rate, STEPS)
    _, _, losses = train(toy_program(strategy, toy_learner(tx), data=4))
    _, expected = oracle(tx, STEPS)
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    _, untrained = oracle(NO_STEPS, STEPS)
    assert np.abs(np.subtract(expected, untrained)).max() > 0.01


@pytest.mark.parametrize(
    "strategy, compute",
    [*[(strategy, "float16") for strategy in ONE_AXIS], ("fsdp", "bfloat16")],
)
def test_sixteen_bits_stays_near(strategy, compute):
    _, _, losses = train(sgd_program(strategy, 4, compute=compute))
    np.testing.assert_allclose(losses, one_device()[1], rtol=2e-2)
    assert losses != one_device()[1]


@pytest.mark.parametrize("strategy", ONE_AXIS)
def test_overflow_skips_the_step_everywhere(strategy):
    program = sgd_program(strategy, 4, compute="float16")
    before, state = assert_overflow_skips(program)
    assert state.step == 1
    for _ in range(24):  # the scale falls until the gradient fits, then training moves
        state, metrics = program.step(state, program.place(batches(1)[0]))
    assert metrics["finite"]
    assert not np.array_equal(
        jax.device_get(state.params)["output"]["kernel"],
        before.params["output"]["kernel"],
    )
