"""Norms of gradients and activations by layer: they show what vanishes or explodes.

A step logs, for each part of the model (a layer, the embedding, ...), the norm of its
gradient, and for each layer the root mean square of its outputs at the positions that count
(Glorot and Bengio 2010, 4.2, figures 6 and 7). The gradient is that of the whole batch,
before clipping. Only sums over outputs leave the loss, so devices and microbatches add up
to what one device would find.

Shapes: B batch, T time, D width, L layers.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

GRADIENT_NORM = "grad_norm/"  # + the part's name: a metric of a step
ACTIVATION_SQUARE = "activation_square/"  # + layer: a sum over positions of mean squares
ACTIVATION_RMS = "activation_rms/"  # + layer: its root mean, in the log


def square(mask_BT: jax.Array, x_BTD: jax.Array) -> jax.Array:
    """Sum the mean of x^2 over D, over the positions that count."""
    x_BTD = jax.lax.stop_gradient(x_BTD).astype(jnp.float32)
    squares_BT = jnp.mean(x_BTD * x_BTD, -1)
    return jnp.sum(jnp.where(mask_BT, squares_BT, 0))


def activation_squares(squares_L: Iterable[jax.Array]) -> dict[str, jax.Array]:
    return {f"{ACTIVATION_SQUARE}layers/{i}": x for i, x in enumerate(squares_L)}


def gradient_norms(grads: Any) -> dict[str, jax.Array]:
    """Return the norm of each part's gradient, float32[], scanned layers one by one."""
    squares: dict[str, jax.Array] = {}
    for path, grad in jax.tree.leaves_with_path(grads):
        for name, total in part_squares([str(entry.key) for entry in path], grad):
            squares[name] = squares.get(name, 0.0) + total
    return {GRADIENT_NORM + name: jnp.sqrt(total) for name, total in squares.items()}


def part_squares(path: list[str], grad: jax.Array) -> list[tuple[str, jax.Array]]:
    """Return (the part's name, sum of squares) of each part that a parameter belongs to."""
    squared = jnp.square(grad.astype(jnp.float32))
    if path[0] == "scanned_layers":
        totals_L = jnp.sum(squared, range(1, grad.ndim))
        return [(f"layers/{i}", total) for i, total in enumerate(totals_L)]
    depth = 2 if path[0] == "layers" else 1
    return [("/".join(path[:depth]), jnp.sum(squared))]
