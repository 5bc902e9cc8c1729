"""Rows weighted by their loss: every strategy trains as one device does, step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import ngram
from configs.base import Experiment
from experiments.run.check import check
from lm.precision import PrecisionConfig, loss_scaling
from lm.robust import NORMAL, RobustConfig, robust, robust_scaling
from tests.parallel.toy import (
    SGD,
    STEPS,
    assert_equal,
    oracle,
    toy_learner,
    toy_program,
    toy_task,
    train,
    weight_of_targets,
    weighted_batches,
)

TUKEY = RobustConfig(weights="tukey", threshold=1.5, gain=0.3, settle=2)
MODEL = {"num_layers": 2, "loss_chunk": 8}


def program(strategy: str, config: RobustConfig, **degrees):
    learner = toy_learner(SGD, **MODEL)
    learner = learner._replace(
        task=robust(learner.task, config),
        scaling=robust_scaling(loss_scaling(PrecisionConfig()), config),
    )
    return toy_program(strategy, learner, **degrees)


@functools.cache
def by_hand():
    """Train as a textbook would; return parameters, losses, estimates, rows' weights."""
    task = toy_task(**MODEL)

    @jax.jit
    def step(params, opt, batch, weight_BT, factor_B):
        def row_losses(params):
            logits = jax.nn.log_softmax(task.logits(params, batch))
            return -jnp.take_along_axis(logits, batch["tokens"][:, 1:, None], -1)[..., 0]

        def mean_loss(params):
            weights = weight_BT * factor_B[:, None]
            return jnp.sum(weights * row_losses(params)) / jnp.sum(weights)

        loss, grads = jax.value_and_grad(mean_loss)(params)
        updates, opt = SGD.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, loss

    @jax.jit
    def losses_of(params, batch, weight_BT):
        logits = jax.nn.log_softmax(task.logits(params, batch))
        each = -jnp.take_along_axis(logits, batch["tokens"][:, 1:, None], -1)[..., 0]
        return jnp.sum(weight_BT * each, 1) / jnp.sum(weight_BT, 1)

    params = jax.jit(task.init)(jax.random.key(1))
    opt, median, distance = SGD.init(params), 0.0, 1.0
    losses, factors = [], []
    for number, batch in enumerate(weighted_batches(STEPS)):
        weight_BT = weight_of_targets(batch)
        rows = weight_BT.sum(1) > 0
        row = np.asarray(losses_of(params, batch, weight_BT), np.float64)
        z = (row - median) / (NORMAL * distance)
        tukey = np.where(np.abs(z) < 1.5, (1 - (z / 1.5) ** 2) ** 2, 0)
        factor = np.where(rows, tukey if number >= 2 else 1.0, 0.0)
        params, opt, loss = step(params, opt, batch, weight_BT, factor)
        losses.append(float(loss))
        factors.append(factor[rows])
        row = row[rows]
        if number == 0:
            median = row.mean()
        elif number == 1:
            distance = np.abs(row - median).mean()
        else:
            above = np.sign(row - median).mean()
            far = np.sign(np.abs(row - median) - distance).mean()
            median += 0.3 * distance * above
            distance *= np.exp(0.3 * far)
    return jax.device_get(params), losses, (median, distance), factors


@pytest.mark.parametrize(
    "strategy, degrees",
    [
        ("jit", {"data": 1}),
        ("shard_map", {"data": 8}),
        ("fsdp", {"data": 4, "accumulation": 2}),
        ("1f1b", {"data": 2, "stage": 2, "accumulation": 4}),
    ],
)
def test_training_equals_one_device(strategy, degrees):
    state, params, losses = train(
        program(strategy, TUKEY, **degrees), STEPS, weighted_batches
    )
    expected, expected_losses, usual, _ = by_hand()
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_equal(params, expected)
    np.testing.assert_allclose((state.scale.median, state.scale.distance), usual, rtol=1e-4)
    assert state.scale.seen == STEPS


def test_rows_do_weigh_differently():
    factors = np.concatenate(by_hand()[3][2:])
    assert factors.min() == 0 and factors.max() > 0.9


def test_a_huge_threshold_is_no_weights():
    config = RobustConfig(weights="huber", threshold=1e9, settle=2)
    made = program("shard_map", config, data=2)
    _, params, losses = train(made, STEPS, weighted_batches)
    expected, expected_losses = oracle(SGD, STEPS, weighted_batches, **MODEL)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_equal(params, expected)


def test_it_is_refused_where_it_has_no_meaning():
    config = Experiment()
    config.robust.weights, config.parallel.strategy = "huber", "diloco"
    words = "robust.weights is 'huber'.* parallel.strategy is 'diloco'"
    with pytest.raises(ValueError, match=words):
        config.validate()
    counts = ngram.get_config()
    counts.robust.weights = "tukey"
    with pytest.raises(ValueError, match="a model of counts has no loss in training"):
        check(counts)
