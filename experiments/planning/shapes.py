"""From a config to the shapes and numbers that a plan is made of; nothing is allocated."""

import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr

from configs.base import Experiment
from experiments.costs.step import inner_programs
from experiments.run.build import build_task, setting
from experiments.run.phases.phase import phases_of
from experiments.run.steps import at_its_largest, empty_rows
from lm.models.transformer.config import SAVEABLE, TransformerConfig
from lm.optim import optimizer
from lm.precision import DTYPES, PrecisionConfig
from lm.task import Task
from parallel.cost.closed_forms import cut_of
from parallel.cost.plan import Model
from parallel.cost.saved import Block, Saved, remat_saved
from parallel.cost.step_time import Product
from parallel.pipeline.stacking import LAYERS, STACK, outer_of

Shape = jax.ShapeDtypeStruct


def model_of(config: Experiment, platform: str) -> Model:
    """Return the Model of a config whose kernels are those of a platform.

    ValueError for a model that counts, and so has no step with gradients.
    """
    config = at_its_largest(phases_of(config)[0])
    if config.model.trained_by == "counts":
        raise ValueError(
            "a model of counts has no gradients to plan for: its tuples are counted once; "
            "choose another family of models"
        )
    task = build_task(config, config.data.vocab_size)
    params = jax.eval_shape(task.init, jax.random.key(0))
    tx = optimizer(config.optim, config.steps, task.hidden)
    rows = empty_rows(config.data.batch_size, config.data.seq_len)
    cut = cut_of(task, params, rows, platform)
    positions = config.data.batch_size * config.data.seq_len
    layer, outer = products_of(plain(config))
    return Model(
        params=params,
        opt=jax.eval_shape(tx.init, params),
        tensor_dims=task.tensor_dims,
        cut=cut,
        rows=config.data.batch_size,
        seq_len=config.data.seq_len,
        compute=config.precision.compute,
        saved=saved_of(config, task, params, platform),
        carry=cut.carry / 4 * itemsize(config) / positions if cut else 0.0,
        wide=getattr(config.model, "hidden_width", getattr(config.model, "width", 0)),
        gated=getattr(config.model, "activation", "") == "swiglu",
        vocab_size=config.data.vocab_size,
        loss_chunk=getattr(config.model, "loss_chunk", 0) or config.data.seq_len,
        layer=layer,
        outer=outer,
        written=1 if cut is None or STACK in params else cut.num_layers,
        norms=1 + bool(config.optim.clip_norm),  # one is measured, another clips
    )


def itemsize(config: Experiment) -> int:
    return jnp.dtype(DTYPES[config.precision.compute]).itemsize


def saved_of(
    config: Experiment, task: Task, params, platform: str
) -> dict[str, list[Saved]]:
    """Return what a layer keeps under each policy; of other families, autodiff's."""
    model, size = config.model, itemsize(config)
    if isinstance(model, TransformerConfig):
        block = Block(
            model.width,
            model.num_heads,
            model.num_kv_heads or model.num_heads,
            model.hidden_width,
            config.data.seq_len,
            gated=model.activation == "swiglu",
            kernel=model.kernel(setting(config, config.data.vocab_size), platform),
            normed=model.norm != "none",
            dropout=model.dropout > 0,
            rotary=model.positions == "rotary",
        )
        return {remat: remat_saved(block, size, remat) for remat in SAVEABLE}
    return {"none": residuals(config, task, params)}


def residuals(config: Experiment, task: Task, params) -> list[Saved]:
    """Return what autodiff keeps of a layer, or of a model without layers, by a row."""
    length = config.data.seq_len
    row = jax.tree.map(lambda x: Shape(x.shape, x.dtype), empty_rows(1, length))
    if task.stages is None:
        function, arguments = (lambda p: task.loss(p, row_like(row), None)[0]), (params,)
        kept = jax.eval_shape(lambda p: jax.vjp(function, p)[1], params)
    else:
        _, embed, layer, _ = task.stages
        outer = outer_of(params)
        carry = jax.eval_shape(lambda p, b: embed(p, b, None), outer, row)
        one = first_layer(params)
        kept = jax.eval_shape(
            lambda p, x, b, i: jax.vjp(lambda p, x: layer(p, x, b, i, None), p, x)[1],
            one, carry, row, Shape((), jnp.int32),
        )  # fmt: skip
        arguments = (one,)
    weights = {x.shape for x in jax.tree.leaves(arguments)}
    arrays = [x for x in jax.tree.leaves(kept) if x.shape not in weights]
    return [
        Saved(f"array {i} of {x.shape}", x.size * x.dtype.itemsize / length, False)
        for i, x in enumerate(arrays)
    ]


def row_like(row):
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), row)


def first_layer(params):
    """Return the shapes of one layer's parameters."""
    if STACK in params:
        return jax.tree.map(lambda x: Shape(x.shape[1:], x.dtype), params[STACK])
    return params[LAYERS][0]


def plain(config: Experiment) -> Experiment:
    """Return the config with products that no kernel hides, in float32."""
    model = config.model
    if hasattr(model, "attention"):
        model = dataclasses.replace(model, attention="xla")
    if hasattr(model, "remat"):
        model = dataclasses.replace(model, remat="none")
    return dataclasses.replace(config, model=model, precision=PrecisionConfig())


def products_of(config: Experiment) -> tuple[list[Product], list[Product]]:
    """Return the products of one layer's forward pass for a row, and of the rest."""
    task = build_task(config, config.data.vocab_size)
    params = jax.eval_shape(task.init, jax.random.key(0))
    row = jax.tree.map(
        lambda x: Shape(x.shape, x.dtype), empty_rows(1, config.data.seq_len)
    )
    if task.stages is None:
        whole = jax.make_jaxpr(lambda p, b: task.loss(p, b, None)[0])(params, row)
        return list(products(whole.jaxpr)), []
    _, embed, layer, loss = task.stages
    outer = outer_of(params)
    carry = jax.eval_shape(lambda p, b: embed(p, b, None), outer, row)
    inside = jax.make_jaxpr(lambda p, x, b, i: layer(p, x, b, i, None))(
        first_layer(params), carry, row, Shape((), jnp.int32)
    )
    outside = [
        jax.make_jaxpr(lambda p, b: embed(p, b, None))(outer, row),
        jax.make_jaxpr(lambda p, x, b: loss(p, x, b)[0])(outer, carry, row),
    ]
    return list(products(inside.jaxpr)), [
        product for one in outside for product in products(one.jaxpr)
    ]


def products(jaxpr: Jaxpr, times: float = 1.0) -> Iterator[Product]:
    """Yield the products of a program; a loop's body counts as often as it runs."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield product(eqn)._replace(times=times)
            continue
        inner = inner_programs(eqn.params)
        for program in inner[:1] if eqn.primitive.name == "cond" else inner:
            yield from products(program, times * eqn.params.get("length", 1))


def product(eqn) -> Product:
    (contracted, _), (batched, _) = eqn.params["dimension_numbers"]
    left, right = (var.aval for var in eqn.invars)
    result = eqn.outvars[0].aval
    depth = math.prod(left.shape[dim] for dim in contracted)
    # With a row, activations have three dims or more, and weights two at most.
    weights = [x for x in (left, right) if not batched and x.ndim <= 2]
    fixed = weights[-1].size if weights else 0
    dims = (depth, *weights[-1].shape) if weights else (depth, *result.shape[-2:])
    moved = left.size + right.size + result.size - fixed
    return Product(2.0 * result.size * depth, min(dims), moved, fixed)
