"""The product that every layer is made of, and GELU, each with its own backward pass.

Shapes: I inputs, O outputs; x_xI and y_xO have any leading dims.
"""

import math

import jax
import jax.numpy as jnp


@jax.custom_vjp
def matmul(x_xI: jax.Array, w_IO: jax.Array) -> jax.Array:
    """Return x @ w.

    The gradient of w sums over rows, so one of x and dy must be read transposed. Autodiff
    always transposes dy. XLA for CPUs makes a transposed copy and computes dy anew inside
    it, element by element against the grain of memory: with a wide dy (of the first matrix
    of an MLP, of the head) a step of GPT-2 takes 1.2 to 1.5 times as long. Here the
    narrower of the two is transposed. Elsewhere the two orders cost the same.
    """
    return jnp.matmul(x_xI, w_IO)


def matmul_forward(x_xI: jax.Array, w_IO: jax.Array):
    return matmul(x_xI, w_IO), (x_xI, w_IO)


def matmul_backward(saved, dy_xO: jax.Array):
    x_xI, w_IO = saved
    rows = tuple(range(x_xI.ndim - 1))
    sum_rows = ((rows, rows), ((), ()))
    if x_xI.shape[-1] <= dy_xO.shape[-1]:
        dw_IO = jax.lax.dot_general(x_xI, dy_xO, sum_rows)
    else:
        dw_IO = jax.lax.dot_general(dy_xO, x_xI, sum_rows).T
    return jnp.matmul(dy_xO, w_IO.T), dw_IO


matmul.defvjp(matmul_forward, matmul_backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Return GELU in its tanh form (Hendrycks and Gimpel 2016).

    The backward pass needs x alone. It computes tanh(u) again as 2 sigmoid(2u) - 1: XLA
    would find a second tanh equal to the first, and keep that one, as large as x, from the
    forward pass to the backward pass.
    """
    return jax.nn.gelu(x)


def gelu_forward(x: jax.Array):
    return gelu(x), x


def gelu_backward(x: jax.Array, dy: jax.Array):
    scale, cubic = 2 * (2 / math.pi) ** 0.5, 0.044715
    s = jax.nn.sigmoid(scale * (x + cubic * x**3))
    return (dy * (s + x * s * (1 - s) * scale * (1 + 3 * cubic * x**2)),)


gelu.defvjp(gelu_forward, gelu_backward)
