"""A small transformer task with ragged rows, and a single-device oracle in bare JAX.

Compiling takes most of a test's time. `sgd_program` makes each program once, for all laws
that are asked of it.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm.models.setting import Setting
from lm.models.transformer.config import TransformerConfig
from lm.optim import OptimConfig, optimizer
from lm.precision import PrecisionConfig, loss_scaling, mixed_precision
from lm.task import Task
from parallel.config import ParallelConfig
from parallel.program import Learner, Program
from parallel.readings import read
from parallel.strategies import build_program

SEVERAL_AXES = ["hsdp", "tensor", "hybrid"]  # whose meshes may have more than `data`

VOCAB, SEQ_LEN, BATCH = 64, 16, 16
STEPS = 5
# SGD, so that an error in the gradient's scale shows; clipping couples all shards.
SGD = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.3, momentum=0.9))
MODEL = TransformerConfig(
    width=32, num_layers=1, num_heads=4, num_kv_heads=2, norm="rmsnorm",
    positions="rotary", activation="swiglu", tied=False, bias=True,
)  # fmt: skip


@functools.cache
def batches(num: int) -> list[dict[str, np.ndarray]]:
    """Rows whose numbers of target tokens differ widely, two of them empty."""
    rng = np.random.default_rng(0)
    result = []
    for _ in range(num):
        lengths = rng.integers(3, SEQ_LEN + 2, BATCH)
        lengths[[5, 6]] = 0
        position = np.arange(SEQ_LEN + 1)
        segments = (position < lengths[:, None]) * (1 + (position > 4))
        result.append(
            {
                "tokens": rng.integers(0, VOCAB, (BATCH, SEQ_LEN + 1), np.int32),
                "segments": segments.astype(np.int32),
                "row": np.arange(BATCH, dtype=np.int32),
            }
        )
    return result


@functools.cache
def weighted_batches(num: int) -> list[dict[str, np.ndarray]]:
    """The same rows; weights differ from token to token, and whole rows weigh nothing."""
    rng = np.random.default_rng(2)
    result = []
    for batch in batches(num):
        weights = rng.uniform(0, 3, batch["tokens"].shape) * rng.integers(0, 2, (BATCH, 1))
        result.append(batch | {"weights": weights.astype(np.float32)})
    return result


def weight_of_targets(batch) -> np.ndarray:
    """Sum the weights of the targets of a batch; a target without one weighs 1."""
    segments = batch["segments"]
    inside = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return (batch["weights"][:, 1:] if "weights" in batch else 1.0) * inside


@functools.cache
def toy_task(compute: str = "float32", dropout: float = 0.0, remat: str = "none", **model):
    choices = vars(MODEL) | {"dropout": dropout, "remat": remat} | model
    model = TransformerConfig(**choices)
    task = model.task(Setting(VOCAB, SEQ_LEN))
    task = task._replace(init=drawn_at_once(task.init))
    return mixed_precision(task, PrecisionConfig(compute=compute))


def drawn_at_once(init, size: float = 0.02):
    """Draw all matrices in one: initialisers of their own take longer to compile."""
    shapes = jax.eval_shape(init, jax.random.key(0))
    sizes = [math.prod(x.shape) for x in jax.tree.leaves(shapes)]
    ends = np.cumsum(sizes)

    def drawn(key):
        flat = size * jax.random.normal(key, (ends[-1],))
        parts = iter(jnp.split(flat, ends[:-1]))

        def leaf(path, shape):
            part = next(parts)
            match path[-1].key:
                case "scale":
                    return jnp.ones(shape.shape)
                case "bias":
                    return jnp.zeros(shape.shape)
            return part.reshape(shape.shape)

        return jax.tree.map_with_path(leaf, shapes)

    return drawn


def toy_learner(
    tx: optax.GradientTransformation, compute: str = "float32", dropout: float = 0.0,
    loss_scale: float = 64.0, remat: str = "none", **model,
) -> Learner:  # fmt: skip
    return learner_of(toy_task(compute, dropout, remat, **model), tx, compute, loss_scale)


@functools.cache
def whole_matrix_optimizer(name: str, rate: float, num_steps: int):
    """Return the same value for the same arguments, so that `oracle` trains once."""
    config = OptimConfig(name=name, learning_rate=rate, schedule="constant")
    return optimizer(config, num_steps, toy_task().hidden)


def learner_of(
    task: Task, tx: optax.GradientTransformation, compute="float32", loss_scale=64.0
) -> Learner:
    return Learner(
        task=task,
        optimizer=optax.with_extra_args_support(tx),
        scaling=loss_scaling(PrecisionConfig(compute=compute, loss_scale=loss_scale)),
        learning_rate=lambda opt: jnp.float32(0),
        seed=7,
    )


def toy_program(strategy: str, learner: Learner, **config) -> Program:
    config = ParallelConfig(strategy=strategy, **config)
    mesh = config.mesh()
    config.validate(BATCH, mesh)
    return build_program(config, learner, mesh)


@functools.cache
def sgd_program(strategy: str, data: int, accumulation: int = 1, **learner) -> Program:
    learner = toy_learner(SGD, **learner)
    return toy_program(strategy, learner, data=data, accumulation=accumulation)


def train(program: Program, num_steps: int = STEPS, batches=batches):
    """Take steps from key 1; return the state, the parameters and the losses."""
    state, losses = program.init(jax.random.key(1)), []
    drawn = [program.place(batch) for batch in batches(num_steps)]
    for number in range(num_steps):
        state, metrics = program.step(state, program.draw(drawn.__getitem__, number))
        values = read(metrics).values
        losses.append(values["loss"] / values.get("weight", values["tokens"]))
    return state, jax.device_get(program.params(state)), losses


def assert_equal(params, expected, rtol=2e-5):
    for (path, a), b in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(expected), strict=True
    ):
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol, rtol * scale, err_msg=str(path))


def assert_overflow_skips(program: Program):
    """Take a step whose gradient overflows; return the states before and after it."""
    state = program.init(jax.random.key(1))
    state = state._replace(scale=state.scale._replace(value=state.scale.value * 2**18))
    before = jax.device_get(state)
    state, metrics = program.step(state, program.place(batches(1)[0]))
    after = jax.device_get(state)
    assert not metrics["finite"]
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    jax.tree.map(np.testing.assert_array_equal, after.opt, before.opt)
    assert after.scale.value == before.scale.value / 2
    return before, state


def one_device(batches=batches, **model):
    return oracle(SGD, STEPS, batches, **model)


@functools.cache
def oracle(
    tx: optax.GradientTransformation, num_steps: int, batches=batches,
    dropout: float = 0.0, **model,
):  # fmt: skip
    return oracle_of(toy_task(dropout=dropout, **model), tx, num_steps, batches)


def oracle_of(
    task: Task, tx: optax.GradientTransformation, num_steps: int, batches=batches
):
    """Train on one device; return the parameters and the losses."""
    params, _, losses = oracle_state(task, tx, num_steps, batches)
    return params, losses


def oracle_state(
    task: Task, tx: optax.GradientTransformation, num_steps: int, batches=batches
):
    """Train on one device as a textbook would: the mean loss of the whole batch."""

    def mean_loss(params, batch, key):
        loss_sum, sums = task.loss(params, batch, key)
        weight = jnp.sum(weight_of_targets(batch))
        return loss_sum / weight, sums["loss"] / weight

    @jax.jit
    def step(params, opt, batch, key):
        grads, loss = jax.grad(mean_loss, has_aux=True)(params, batch, key)
        updates, opt = tx.update(grads, opt, params, value=loss)
        return optax.apply_updates(params, updates), opt, loss

    tx = optax.with_extra_args_support(tx)
    params = jax.jit(task.init)(jax.random.key(1))
    opt, losses = tx.init(params), []
    for index, batch in enumerate(batches(num_steps)):
        key = jax.random.fold_in(jax.random.key(7), index)
        params, opt, loss = step(params, opt, batch, key)
        losses.append(float(loss))
    return jax.device_get(params), jax.device_get(opt), losses
