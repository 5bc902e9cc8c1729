"""A linear model whose programs compile at once, and what a textbook does with it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm.precision import PrecisionConfig, loss_scaling
from parallel.exchange.config import ExchangeConfig
from parallel.mesh import data_mesh
from parallel.program import Learner, Program
from parallel.server.config import ServerConfig
from parallel.server.kinds import Parts, gradient_parts
from parallel.server.program import server_program

ROWS, LENGTH, WORDS = 8, 4, 5


class LineTask:
    """tokens -> logits of the next token; the three leaves differ in size.

    Where a row has a number below 0, the loss is not a number.
    """

    hidden = ()
    tensor_dims = ()

    @staticmethod
    def init(key):
        a, b = jax.random.split(key)
        return {
            "table": jax.random.normal(a, (WORDS, WORDS)),
            "inside": {"bias": jax.random.normal(b, (WORDS,)), "scale": jnp.ones(())},
        }

    @staticmethod
    def loss(params, batch, key):
        read, wanted = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        inside = params["inside"]
        logits = params["table"][read] * inside["scale"] + inside["bias"]
        each = -jnp.take_along_axis(jax.nn.log_softmax(logits), wanted[..., None], -1)
        mask = batch["segments"][:, 1:] > 0
        total = jnp.sum(each[..., 0] * mask)
        total *= jnp.where(batch["row"].min() < 0, jnp.nan, 1.0)
        return total, {"loss": total, "tokens": jnp.sum(mask)}


@functools.cache
def rows(num: int, seed: int = 0, full: bool = False) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num):
        lengths = rng.integers(1, LENGTH + 2, (ROWS, 1))
        inside = np.arange(LENGTH + 1) < (LENGTH + 1 if full else lengths)
        tokens = rng.integers(0, WORDS, (ROWS, LENGTH + 1), np.int32)
        found.append(
            {
                "tokens": tokens,
                "segments": inside.astype(np.int32) * np.ones_like(tokens),
                "row": np.arange(ROWS, dtype=np.int32),
            }
        )
    return found


def learner(tx: optax.GradientTransformation, num_steps: int = 0) -> Learner:
    return Learner(
        task=LineTask,
        optimizer=optax.with_extra_args_support(tx),
        scaling=loss_scaling(PrecisionConfig()),
        learning_rate=lambda opt: jnp.float32(0),
        seed=7,
        num_steps=num_steps,
    )


def program(
    tx: optax.GradientTransformation, num_steps: int = 0, exchange=None, **server
) -> Program:
    return server_program(parts(tx, num_steps, exchange, **server), data_mesh(1))


def parts(
    tx: optax.GradientTransformation, num_steps: int = 0, exchange=None, **server
) -> Parts:
    config, exchange = ServerConfig(**server), ExchangeConfig(**(exchange or {}))
    config.validate(exchange, "parameter_server")
    return gradient_parts(learner(tx, num_steps), data_mesh(1), config, exchange)


def take(program: Program, state, num: int, batches=None):
    """Take steps; return the state, the parameters and the lines of the schedule."""
    batches, lines = batches or rows(64), []
    for _ in range(num):
        drawn = program.draw(batches.__getitem__, int(state.step))
        state, metrics = program.step(state, drawn)
        lines += metrics["applied"]
    return state, jax.device_get(program.params(state)), lines


@jax.jit
def mean_gradient(params, batch):
    def loss(params):
        total, sums = LineTask.loss(params, batch, None)
        return total / sums["tokens"]

    return jax.grad(loss)(params)


def start():
    return jax.device_get(LineTask.init(jax.random.key(1)))


def assert_near(found, expected, rtol=1e-6):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol, 1e-6)


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)
