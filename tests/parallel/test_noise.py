"""The gradient's variance and square, where both are known: the mean of Gaussian vectors.

The loss 1/2 |w - x|^2 of a token x has the gradient w - x, so over tokens the gradient has
the mean w - E x and the covariance of x.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.precision import PrecisionConfig, loss_scaling
from lm.task import Task
from parallel.config import ParallelConfig
from parallel.program import Learner
from parallel.strategies import build_program

ROWS, TOKENS, DIM = 32, 4, 1024
MEAN = np.linspace(-1, 1, DIM)
DEVIATION = np.linspace(0.5, 2, DIM)
# Strategy, microbatches: the units are microbatches on devices, of jit microbatches alone.
SPREAD = [("pmap", 1), ("shard_map", 2), ("zero2", 2)]
UNITS = {(strategy, m): 8 * m for strategy, m in SPREAD} | {("jit", 4): 4}


def loss(params, batch, key):
    token_loss = 0.5 * jnp.sum((params["w"] - batch["x"]) ** 2, -1) * batch["mask"]
    total = jnp.sum(token_loss * batch.get("weights", 1.0))
    sums = {"loss": total, "tokens": jnp.sum(batch["mask"])}
    if "weights" in batch:
        weights = batch["weights"] * batch["mask"]
        sums |= {"weight": jnp.sum(weights), "weight_squares": jnp.sum(weights**2)}
    return total, sums


@functools.cache
def program(strategy: str, accumulation: int, **exchange):
    config = ParallelConfig(strategy=strategy, accumulation=accumulation)
    for name, value in exchange.items():
        setattr(config.exchange, name, value)
    learner = Learner(
        task=Task(lambda key: {"w": jnp.zeros(DIM)}, loss, None, None, None),
        optimizer=optax.with_extra_args_support(optax.sgd(0.0)),
        scaling=loss_scaling(PrecisionConfig(compute="float16", loss_scale=8.0)),
        learning_rate=lambda opt: jnp.float32(0),
        seed=0,
    )
    return build_program(config, learner, config.mesh())


def batch(rng, weighted=False) -> dict[str, np.ndarray]:
    """Rows of 0 to 4 tokens; one unit in eight has none at all."""
    x = MEAN + DEVIATION * rng.standard_normal((ROWS, TOKENS, DIM))
    mask = np.arange(TOKENS) < rng.integers(0, TOKENS + 1, (ROWS, 1))
    mask[ROWS // 8 : ROWS // 4] = False
    made = {"x": x.astype("f4"), "mask": mask.astype("f4")}
    # Far from equal, and between units too.
    row = 4.0 ** rng.integers(-2, 2, (ROWS, 1))
    weights = (row * rng.uniform(0, 2, mask.shape)).astype("f4")
    return made | {"weights": weights} if weighted else made


def run(program, num_steps: int, weighted: bool) -> tuple[np.ndarray, np.ndarray]:
    rng, state = np.random.default_rng(0), program.init(jax.random.key(0))
    found = []
    for _ in range(num_steps):
        state, metrics = program.step(state, program.place(batch(rng, weighted)))
        found.append((float(metrics["grad_variance"]), float(metrics["grad_square"])))
    return np.array(found).T


@pytest.mark.parametrize(
    ("strategy", "accumulation", "weighted"),
    [*((*unit, False) for unit in UNITS), ("shard_map", 2, True)],
)
def test_unbiased(strategy, accumulation, weighted):
    num_steps = 300
    variance, square = run(program(strategy, accumulation), num_steps, weighted)
    for estimates, truth in [
        (variance, np.sum(DEVIATION**2)),
        (square, np.sum(MEAN**2)),
    ]:
        error = estimates.std() / np.sqrt(num_steps)
        assert error < 0.05 * truth
        assert abs(estimates.mean() - truth) < 4 * error


@pytest.mark.parametrize(("strategy", "accumulation"), UNITS)
def test_equals_sample_variance_over_units(strategy, accumulation):
    """With as many tokens in each unit, it is n times the sample variance of unit means."""
    made = program(strategy, accumulation)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((ROWS, TOKENS, DIM)).astype("f4")
    full = {"x": x, "mask": np.ones((ROWS, TOKENS), "f4")}
    _, metrics = made.step(made.init(jax.random.key(0)), made.place(full))
    num_units = UNITS[strategy, accumulation]
    # A device has consecutive rows, and its microbatch m the rows m, m + accumulation, ...
    devices = num_units // accumulation
    rows = x.reshape(devices, -1, accumulation, TOKENS, DIM).swapaxes(1, 2)
    means = rows.reshape(num_units, -1, DIM).mean(1)
    expected = means.var(0, ddof=1).sum() * ROWS * TOKENS / num_units
    np.testing.assert_allclose(metrics["grad_variance"], expected, rtol=1e-5)


def test_one_unit_tells_nothing():
    made = program("shard_map", 2)
    lonely = {name: rows.copy() for name, rows in batch(np.random.default_rng(0)).items()}
    lonely["mask"][0], lonely["mask"][1:] = 1, 0
    _, metrics = made.step(made.init(jax.random.key(0)), made.place(lonely))
    assert np.isnan(metrics["grad_variance"])


@pytest.mark.parametrize(
    ("strategy", "exchange"),
    [("fsdp", {}), ("jit", {}), ("shard_map", {"codec": "top_k", "keep": 0.5})],
)
def test_is_not_claimed_where_it_would_be_wrong(strategy, exchange):
    made = program(strategy, 1, **exchange)
    rows = made.place(batch(np.random.default_rng(0)))
    _, metrics = jax.eval_shape(made.step, made.abstract, rows)
    assert "grad_square" not in metrics and "grad_variance" not in metrics
