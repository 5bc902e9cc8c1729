"""Mixed precision: 16-bit compute over float32 parameters, with dynamic loss scaling.

`mixed_precision` is a transformation Task -> Task. It casts the parameters on their way
into the Task, so that gradients come back in float32. float16 has only 5 bits of exponent:
small gradients would become 0. So the loss is multiplied by a scale before the backward
pass, and the scale falls after an overflow and rises without one (Micikevicius et al. 2018,
3.2). bfloat16 has the exponent of float32 and needs no scale.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.task import Batch, Sums, Task, with_params

DTYPES = {
    "float32": jnp.float32,
    "bfloat16": jnp.bfloat16,
    "float16": jnp.float16,
}
HALF = {"precision.compute": ("float16",)}  # the one type whose loss is scaled


@dataclass
class PrecisionConfig:
    # type of matrix products and activations; parameters stay float32
    compute: str = field(default="float32", metadata={"choices": tuple(DTYPES)})
    # initial scale of the loss, which is a sum over tokens; 64 at 4,096 tokens in a step is
    # like 262,144 for a mean loss
    loss_scale: float = field(default=64.0, metadata={"above": 0, "only": HALF})
    # steps in a row without an overflow after which the loss scale doubles
    growth_interval: int = field(default=1000, metadata={"at_least": 1, "only": HALF})


class LossScale(NamedTuple):
    value: jax.Array  # float32[]
    finite_steps: jax.Array  # int32[], since the scale last changed


def unmarked(scale: LossScale, batch: Batch) -> Batch:
    return batch


def told_scale(scale: LossScale) -> dict[str, jax.Array]:
    return {"loss_scale": scale.value}


class Scaling(NamedTuple):
    """How the loss scale starts, and how it changes after a step.

    lm/robust.py adds what it knows of rows to the scale.
    """

    init: Callable[[], LossScale]
    # (scale, finite: bool[], the sums of the step) -> the scale of the next step
    update: Callable[[LossScale, jax.Array, Sums], LossScale]
    # (scale, batch) -> the batch with what the loss reads of the scale
    mark: Callable[[LossScale, Batch], Batch] = unmarked
    told: Callable[[LossScale], dict[str, jax.Array]] = told_scale  # metrics of a step


def loss_scaling(config: PrecisionConfig) -> Scaling:
    """Halve the scale on overflow, double it after `growth_interval` finite steps.

    The scale of types other than float16 is always 1.
    """
    dynamic = config.compute == "float16"

    def init() -> LossScale:
        value = config.loss_scale if dynamic else 1.0
        return LossScale(jnp.float32(value), jnp.int32(0))

    def update(scale: LossScale, finite: jax.Array, sums: Sums) -> LossScale:
        if not dynamic:
            return scale
        steps = jnp.where(finite, scale.finite_steps + 1, 0)
        grow = steps >= config.growth_interval
        factor = jnp.where(finite, jnp.where(grow, 2.0, 1.0), 0.5)
        # Without bounds, overflow after overflow would bring the scale to 0.
        value = jnp.clip(scale.value * factor, 2.0**-24, 2.0**24)
        return LossScale(value, jnp.where(grow, 0, steps))

    return Scaling(init, update)


def mixed_precision(task: Task, config: PrecisionConfig) -> Task:
    """Return the task computing in `config.compute`; parameters and logits stay float32."""
    dtype = DTYPES[config.compute]
    if dtype == jnp.float32:
        return task

    def cast(tree):
        """Cast each leaf by itself, so that a part of the parameters may be cast alone."""

        def leaf(x: jax.Array) -> jax.Array:
            return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

        return jax.tree.map(leaf, tree)

    return with_params(task, cast)._replace(
        cast=cast,
        cache=lambda batch_size, length: cast(task.cache(batch_size, length)),
    )
