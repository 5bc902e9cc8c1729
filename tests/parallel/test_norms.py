"""Norms by layer: under every strategy what jax.grad and the layers give on one device."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from lm.models.recurrent import Recurrent, RecurrentConfig
from lm.models.setting import Setting
from lm.models.transformer.config import TransformerConfig
from lm.norms import ACTIVATION_SQUARE, GRADIENT_NORM, gradient_norms, square
from lm.task import inputs, targets_mask
from parallel.pipeline.stacking import outer_of, stack_params
from tests.parallel.toy import (
    MODEL,
    SEQ_LEN,
    VOCAB,
    batches,
    drawn_at_once,
    learner_of,
    toy_program,
)

# Clipped hard: the norms are of the gradient before that.
SGD = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(0.3))
RECURRENT = RecurrentConfig(cell="gru", width=32, num_layers=2)


def transformer_config(**model) -> TransformerConfig:
    return TransformerConfig(**(vars(MODEL) | {"num_layers": 2} | model))


@functools.cache
def traced_task(family: str, trace_norms: bool = True, **model):
    if family == "recurrent":
        task = RECURRENT.task(Setting(VOCAB, 0, trace_norms=trace_norms))
    else:
        task = transformer_config(**model).task(
            Setting(VOCAB, SEQ_LEN, trace_norms=trace_norms)
        )
    return task._replace(init=drawn_at_once(task.init))


def step_metrics(strategy: str, family: str = "transformer", model=None, **config):
    task = traced_task(family, **model or {})
    learner = learner_of(task, SGD)._replace(measure=gradient_norms)
    program = toy_program(strategy, learner, **config)
    state = program.init(jax.random.key(1))
    return jax.device_get(program.step(state, program.place(batches(1)[0]))[1])


def layer_outputs(family: str, task, params, batch) -> list[jax.Array]:
    """Return each layer's output by other means: the task's stages; shorter models."""
    if family == "recurrent":
        found = []
        for depth in (1, 2):
            config = RecurrentConfig(**(vars(RECURRENT) | {"num_layers": depth}))
            graph = nnx.graphdef(
                nnx.eval_shape(lambda c=config: Recurrent(c, VOCAB, nnx.Rngs(0)))
            )
            kept = {i: params["layers"][i] for i in range(depth)}
            shorter = nnx.merge(graph, params | {"layers": kept})
            found.append(shorter.hidden(*inputs(batch), None))
        return found
    x_BTD, found = task.stages.embed(outer_of(params), batch, None), []
    for index in range(task.stages.num_layers):
        x_BTD = task.stages.layer(params["layers"][index], x_BTD, batch, index, None)
        found.append(x_BTD)
    return found


@functools.cache
def one_device(family: str) -> dict[str, float]:
    task, batch = traced_task(family, trace_norms=False), batches(1)[0]
    params = jax.jit(task.init)(jax.random.key(1))

    def mean_loss(params):
        loss_sum, sums = task.loss(params, batch, None)
        return loss_sum / sums["tokens"]

    @jax.jit
    def both(params):
        return jax.grad(mean_loss)(params), layer_outputs(family, task, params, batch)

    grads, outputs = jax.device_get(both(params))
    parts = {name: grads[name] for name in grads if name != "layers"}
    parts |= {f"layers/{i}": layer for i, layer in grads["layers"].items()}
    counted = np.asarray(targets_mask(batch))
    expected = {}
    for name, part in parts.items():
        flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(part)])
        expected[GRADIENT_NORM + name] = np.linalg.norm(flat.astype("f8"))
    for i, x_BTD in enumerate(outputs):
        squares = np.mean(np.square(x_BTD, dtype="f8"), -1)
        expected[f"{ACTIVATION_SQUARE}layers/{i}"] = squares[counted].sum()
    return expected


def assert_as_on_one_device(metrics, family: str = "transformer"):
    expected = one_device(family)
    found = {name: x for name, x in metrics.items() if "/" in name}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)
    squares = [x**2 for name, x in found.items() if name.startswith(GRADIENT_NORM)]
    np.testing.assert_allclose(sum(squares) ** 0.5, metrics["grad_norm"], rtol=1e-5)


@pytest.mark.parametrize(
    "strategy, config",
    [
        ("jit", {"data": 2, "accumulation": 4}),
        ("shard_map", {"data": 4, "accumulation": 2}),
        ("zero2", {"data": 8}),
        ("hybrid", {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
)
def test_norms_are_those_of_one_device(strategy, config):
    assert_as_on_one_device(step_metrics(strategy, **config))


@pytest.mark.parametrize("strategy", ["shard_map", "fsdp"])
def test_recurrent(strategy):
    assert_as_on_one_device(step_metrics(strategy, "recurrent", data=8), "recurrent")


def test_layers_that_are_recomputed():
    model = {"remat": "full"}
    assert_as_on_one_device(step_metrics("fsdp", model=model, data=2))


def test_scanned_layers_are_told_one_by_one():
    """Stacking what `layers` holds gives the same parameters and so the same norms."""
    apart, scanned = (traced_task("transformer", scan_layers=s) for s in (False, True))
    params, batch = jax.jit(apart.init)(jax.random.key(1)), batches(1)[0]
    stacked = stack_params(params, np.arange(scanned.stages.num_layers))

    def norms(task, params):
        grads, sums = jax.grad(task.loss, has_aux=True)(params, batch, None)
        return gradient_norms(grads) | sums

    expected = jax.jit(functools.partial(norms, apart))(params)
    found = jax.jit(functools.partial(norms, scanned))(stacked)
    assert found.keys() == expected.keys() > {GRADIENT_NORM + "layers/1"}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)


def test_half_precision_sums_in_float32():
    """Squares of float16 outputs overflow already at 256."""
    x_BTD = np.full((2, 3, 4), 1000, np.float16)
    mask_BT = np.array([[True, True, False], [False, True, False]])
    assert square(mask_BT, x_BTD) == 3e6
    assert square(np.ones((2, 3), bool), x_BTD) == 6e6


def test_untraced_step_returns_nothing_of_it():
    """XLA removes what is not returned, so no operation for it is left."""
    found = {}
    for trace_norms in (False, True):
        learner = learner_of(traced_task("transformer", trace_norms), SGD)
        if trace_norms:
            learner = learner._replace(measure=gradient_norms)
        program = toy_program("jit", learner, data=1)
        batch = program.place(batches(1)[0])
        found[trace_norms] = set(jax.eval_shape(program.step, program.abstract, batch)[1])
    traced = set(one_device("transformer"))
    assert not found[False] & traced
    assert found[True] == found[False] | traced
