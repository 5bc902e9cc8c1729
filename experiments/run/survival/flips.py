"""Flip a bit of the gradient of one replica, inside the compiled step.

This is a Task that differs from another only in what flows back through it. The loss is the
same. A replica is known by the rows that it sees, so the Task needs to know nothing of
devices.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.task import Batch, Key, Params, Sums, Task
from parallel.agreement import WORDS


class Flip(NamedTuple):
    """In the step with this key, the replica that sees this row flips a bit.

    The numbers are taken modulo how many leaves, elements and bits there are.
    """

    key: Key  # of the step
    row: int  # place in the global batch
    leaf: int
    element: int
    bit: int


def flipping(task: Task, flips: Sequence[Flip]) -> Task:
    """Return the task whose gradients are flipped; the task itself if there are none."""
    if not flips:
        return task

    def loss(params: Params, batch: Batch, key: Key | None) -> tuple[jax.Array, Sums]:
        for flip in flips:
            here = jnp.any(batch["row"] == flip.row)
            same = jax.random.key_data(key) == jax.random.key_data(flip.key)
            params = through(params, here & jnp.all(same), flip)
        return task.loss(params, batch, key)

    return task._replace(loss=loss)


def through(params: Params, here: jax.Array, flip: Flip) -> Params:
    """Return the parameters as they are; flip a bit of what flows back, if `here`."""
    leaves, structure = jax.tree.flatten(params)
    at = flip.leaf % len(leaves)

    @jax.custom_vjp
    def same(x: jax.Array, here: jax.Array) -> jax.Array:
        return x

    def back(here: jax.Array, grad: jax.Array):
        return jnp.where(here, flipped(grad, flip.element, flip.bit), grad), None

    same.defvjp(lambda x, here: (x, here), back)
    leaves[at] = same(leaves[at], here)
    return structure.unflatten(leaves)


def flipped(x: jax.Array, element: int, bit: int) -> jax.Array:
    word = WORDS[x.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(x, word).reshape(-1)
    place = element % words.size
    words = words.at[place].set(words[place] ^ word(1 << bit % (8 * x.dtype.itemsize)))
    return jax.lax.bitcast_convert_type(words.reshape(x.shape), x.dtype)
