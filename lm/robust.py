"""Robust weights: in training, a row whose loss is far from the usual one counts for less.

The z-score of a row is its loss (the mean over its targets) less the median of rows, over
1.4826 times the median distance from it (the standard deviation, if losses are normal):

  huber   1 up to the threshold, then threshold / |z| (Huber 1964)
  tukey   (1 - (z / threshold)^2)^2 up to the threshold, then 0 (Beaton and Tukey 1974)

Median and distance are running estimates. After each step they move by the mean sign of
the rows' differences from them: the stochastic approximation of a quantile (Robbins and
Monro 1951). The signs are summed as the loss is, so every strategy and any microbatches
give what one device would. Step k uses the estimates of the steps before it. They are in
the state once, beside the loss scale.

Shapes: B batch, T time.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.precision import LossScale, Scaling
from lm.task import Batch, Sums, Task

NORMAL = 1.4826  # standard deviation over median distance, of the normal distribution
LEAST = 1e-6  # nats: below it, rows are alike
USED = {"robust.weights": ("huber", "tukey")}


def huber(z_B: jax.Array, threshold: float) -> jax.Array:
    return threshold / jnp.maximum(jnp.abs(z_B), threshold)


def tukey(z_B: jax.Array, threshold: float) -> jax.Array:
    return jnp.square(jnp.maximum(1 - jnp.square(z_B / threshold), 0))


# name -> the weight of a z-score, and the threshold that loses 5 % to the mean if losses
# are normal
WEIGHTS = {"huber": (huber, 1.345), "tukey": (tukey, 4.685)}


@dataclass
class RobustConfig:
    # how rows with an unusual loss are weighted down in training; local strategies cannot
    weights: str = field(default="none", metadata={"choices": ("none", *WEIGHTS)})
    # z-score from which a row weighs less (huber), or weighs nothing (tukey); 0: the usual
    # one, 1.345 or 4.685
    threshold: float = field(default=0.0, metadata={"at_least": 0, "only": USED})
    # share of the rows' deviation by which the running median may move in a step
    gain: float = field(default=0.1, metadata={"above": 0, "at_most": 1, "only": USED})
    # steps in which the running median settles before weights act
    settle: int = field(default=100, metadata={"at_least": 2, "only": USED})


class RobustScale(NamedTuple):
    """The loss scale, and what is usual for the loss of a row."""

    value: jax.Array  # float32[], of the loss scale
    finite_steps: jax.Array  # int32[], of the loss scale
    median: jax.Array  # float32[], nats a target
    distance: jax.Array  # float32[], the median distance from the median
    seen: jax.Array  # int32[], steps that have moved them


def robust(task: Task, config: RobustConfig) -> Task:
    """Return the task that weights rows by their z-scores, where a batch has `usual`.

    `usual` is float32[B, 3], in each row the median, the distance, and 1 if weights act.
    A loss in chunks computes its logits once more, for a row's loss is needed before its
    gradient.
    """
    if config.weights == "none":
        return task
    weigh, usual_threshold = WEIGHTS[config.weights]
    weigh = partial(weigh, threshold=config.threshold or usual_threshold)
    stages = task.stages and task.stages._replace(
        loss=lambda outer, carry, batch: reweighted(
            lambda batch: task.stages.loss(outer, carry, batch), batch, weigh
        )
    )
    return task._replace(
        stages=stages,
        loss=lambda params, batch, key: reweighted(
            lambda batch: task.loss(params, batch, key), batch, weigh
        ),
    )


def reweighted(
    loss: Callable[[Batch], tuple[jax.Array, Sums]],
    batch: Batch,
    weigh: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, Sums]:
    """Return the loss and its sums with each row's weights times that of its z-score."""
    if "usual" not in batch:  # an evaluation
        return loss(batch)
    given_BT = batch.get("weights", jnp.ones(batch["tokens"].shape, jnp.float32))

    def weighted(weights_BT: jax.Array):
        objective, sums = loss(batch | {"weights": weights_BT})
        return (objective, sums["loss"], sums["weight"]), sums

    # Each of the three is a sum of weight times value. The derivative with respect to a
    # weight is therefore the value, for any Task.
    _, pull, sums = jax.vjp(weighted, given_BT, has_aux=True)
    objective_BT, loss_BT, counts_BT = (
        pull(tuple(jnp.float32(i == j) for j in range(3)))[0] for i in range(3)
    )
    weight_B = jnp.sum(given_BT * counts_BT, 1)
    counts_B = weight_B > 0
    loss_B = jnp.sum(given_BT * loss_BT, 1) / jnp.where(counts_B, weight_B, 1.0)
    loss_B = jax.lax.stop_gradient(loss_B)
    median_B, distance_B, act_B = batch["usual"].T
    z_B = (loss_B - median_B) / (NORMAL * distance_B)
    factor_B = jnp.where(counts_B & (act_B > 0), weigh(z_B), 1.0)
    weights_BT = given_BT * factor_B[:, None]
    sums |= {
        "loss": jnp.sum(weights_BT * loss_BT),
        "weight": jnp.sum(weights_BT * counts_BT),
        "weight_squares": jnp.sum(weights_BT**2 * counts_BT),
    }
    signs = row_signs(loss_B, counts_B, median_B, distance_B)
    return jnp.sum(weights_BT * objective_BT), sums | signs


def row_signs(loss_B, counts_B, median_B, distance_B) -> Sums:
    """Return the sums over the rows that count from which the estimates are moved."""

    def total(values_B: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(counts_B, values_B, 0.0))

    away_B = loss_B - median_B
    return {
        "rows": total(jnp.ones_like(loss_B)),
        "row_loss": total(loss_B),
        "row_distance": total(jnp.abs(away_B)),
        "rows_above": total(jnp.sign(away_B)),
        "rows_far": total(jnp.sign(jnp.abs(away_B) - distance_B)),
    }


def robust_scaling(scaling: Scaling, config: RobustConfig) -> Scaling:
    """Return the scaling whose state also holds what is usual, and marks batches so."""
    if config.weights == "none":
        return scaling

    def init() -> RobustScale:
        zero = jnp.float32(0)
        return RobustScale(*scaling.init(), zero, jnp.float32(1), jnp.int32(0))

    def update(state: RobustScale, finite: jax.Array, sums: Sums) -> RobustScale:
        value, finite_steps = scaling.update(LossScale(*state[:2]), finite, sums)
        moved = move(state, sums, config.gain)
        kept = [
            jnp.where(finite & (sums["rows"] > 0), new, old)
            for new, old in zip(moved, state[2:], strict=True)
        ]
        return RobustScale(value, finite_steps, *kept)

    def mark(state: RobustScale, batch: Batch) -> Batch:
        act = jnp.float32(state.seen >= config.settle)
        usual = jnp.stack([state.median, state.distance, act])
        return batch | {"usual": jnp.broadcast_to(usual, (*batch["row"].shape, 3))}

    def told(state: RobustScale) -> dict[str, jax.Array]:
        usual = {"row_loss_median": state.median, "row_loss_distance": state.distance}
        return scaling.told(LossScale(*state[:2])) | usual

    return Scaling(init, update, mark, told)


def move(
    state: RobustScale, sums: Sums, gain: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the median, the distance and the steps after one more.

    The first step puts the median at the mean of its rows, and the second the distance at
    the mean distance of its rows from there. The distance moves by a factor: it stays above
    0, and it finds its size from any beginning.
    """
    mean = {name: total / jnp.maximum(sums["rows"], 1.0) for name, total in sums.items()}
    median = state.median + gain * state.distance * mean["rows_above"]
    distance = state.distance * jnp.exp(gain * mean["rows_far"])
    early = [state.seen == 0, state.seen == 1]
    median = jnp.select(early, [mean["row_loss"], state.median], median)
    distance = jnp.select(early, [state.distance, mean["row_distance"]], distance)
    return median, jnp.maximum(distance, LEAST), state.seen + 1
