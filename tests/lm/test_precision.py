import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.nnx import Param

from lm.models.layers import lookup
from lm.models.recurrent import RecurrentConfig
from lm.models.seq2seq.task import Seq2SeqConfig
from lm.models.setting import Setting
from lm.models.transformer.config import TransformerConfig
from lm.precision import PrecisionConfig, loss_scaling, mixed_precision
from tests.lm.models.drawn import drawn

BATCH = {
    "tokens": jnp.arange(26).reshape(2, 13) % 20,
    "segments": jnp.ones((2, 13), int),
    "row": jnp.arange(2),
}


VOCAB, SMALL = 20, TransformerConfig(width=16, num_layers=1, num_heads=2)


def make(compute):
    task = SMALL.task(Setting(VOCAB, 12))
    return mixed_precision(task, PrecisionConfig(compute=compute))


def operations(jaxpr, name: str):
    """Yield these operations of a program, also those inside its inner programs."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(value, "eqns"):
                yield from operations(value, name)


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_computes_in_sixteen_bits_over_float32_parameters(compute):
    task, reference = make(compute), make("float32")
    params = drawn(task, 0.1)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    program = jax.make_jaxpr(lambda p: task.loss(p, BATCH, None))(params)
    products = operations(program.jaxpr, "dot_general")
    operands = [{str(x.aval.dtype) for x in equation.invars} for equation in products]
    # Four of attention's layers, its two products, two of the MLP, and the head. On a CPU
    # attention's two are in float32.
    assert len(operands) == 9
    wide = [dtypes for dtypes in operands if dtypes != {compute}]
    assert wide == [{"float32"}] * 2
    loss, grads = jax.jit(jax.value_and_grad(lambda p: task.loss(p, BATCH, None)[0]))(
        params
    )
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    assert loss.dtype == jnp.float32
    expected = jax.jit(lambda p: reference.loss(p, BATCH, None)[0])(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-2)
    assert loss != expected


MODELS = {
    "tied": lambda: SMALL.task(Setting(VOCAB, 12)),
    "untied": lambda: dataclasses.replace(SMALL, tied=False).task(Setting(VOCAB, 12)),
    "recurrent": lambda: RecurrentConfig(width=16).task(Setting(VOCAB, 0)),
    "seq2seq": lambda: Seq2SeqConfig(width=16, num_layers=1).task(Setting(VOCAB, 12, 6)),
    "seq2seq-recurrent": lambda: Seq2SeqConfig("recurrent", width=16, num_layers=1).task(
        Setting(VOCAB, 12, 6)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_sums_in_float32_whoever_asks(name):
    task = mixed_precision(MODELS[name](), PrecisionConfig(compute="bfloat16"))
    params = drawn(task, 0.16)

    @jax.jit
    def outputs(params):
        cache = task.cache(2, 12)
        if task.encode:
            cache = task.encode(params, cache, BATCH["tokens"][:, :6])
        decoded, _ = task.decode(params, cache, BATCH["tokens"][:, 6:-1], jnp.zeros(2, int))
        return task.logits(params, BATCH), decoded, task.loss(params, BATCH, None)[1]

    logits, decoded, sums = outputs(params)
    for found in (logits, decoded):
        assert found.dtype == jnp.float32
        # Sixteen bits hold few of them.
        assert np.mean(found.astype(jnp.bfloat16) == found) < 0.1
    wide = np.asarray(logits, np.float64)
    labels = np.asarray(BATCH["tokens"])[:, -wide.shape[1] :, None]
    losses = np.log(np.exp(wide).sum(-1)) - np.take_along_axis(wide, labels, -1)[..., 0]
    np.testing.assert_allclose(sums["loss"], losses.sum(), rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_rows_of_a_table_add_up_in_float32(name):
    task = mixed_precision(MODELS[name](), PrecisionConfig(compute="bfloat16"))
    params = jax.eval_shape(task.init, jax.random.key(0))
    program = jax.make_jaxpr(jax.grad(lambda p: task.loss(p, BATCH, None)[0]))(params)
    found = [x.invars[0].aval for x in operations(program.jaxpr, "scatter-add")]
    found = [x for x in found if x.ndim == 2]  # tables
    assert {x.shape for x in found} >= {(VOCAB, 16)}
    assert {x.dtype for x in found} == {jnp.dtype("float32")}


def test_a_row_of_a_table_gets_the_gradients_of_all_its_places():
    def total(table):
        return jnp.sum(lookup(Param(table), jnp.zeros(4096, int)).astype(jnp.float32))

    table = jnp.zeros((3, 2), jnp.bfloat16)
    grads = jax.jit(jax.grad(total))(table)
    np.testing.assert_array_equal(grads, jnp.zeros_like(table).at[0].set(4096))


def test_scale_halves_on_overflow_and_doubles_after_the_interval():
    scaling = loss_scaling(
        PrecisionConfig(compute="float16", loss_scale=8.0, growth_interval=3)
    )
    scale, seen = scaling.init(), []
    for finite in [True, False, True, True, True, True, False, False]:
        scale = scaling.update(scale, jnp.asarray(finite), {})
        seen.append(float(scale.value))
    assert seen == [8, 4, 4, 4, 8, 8, 4, 2]


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_scale_is_one_otherwise(compute):
    scaling = loss_scaling(PrecisionConfig(compute=compute))
    scale = scaling.update(scaling.init(), jnp.asarray(False), {})
    assert scale.value == 1
