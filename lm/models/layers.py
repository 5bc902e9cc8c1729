"""What layers are made of: the matrix product, activations, initialisers, norms, dropout.

Shapes: I inputs, O outputs (x_xI and y_xO have any leading dims); B batch, T time, D width.
"""

import math
import os
import sys
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x_xI: jax.Array, w_IO: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
    """Return x @ w, as `dtype` if given; its sums are made in float32 anyway.

    The gradient of w sums over rows, so one of x and dy must be read transposed. Autodiff
    always transposes dy. XLA for CPUs makes a transposed copy and computes dy anew inside
    it, element by element against the grain of memory: with a wide dy (of the first matrix
    of an MLP, of the head) a step of GPT-2 takes 1.2 to 1.5 times as long. Here the
    narrower of the two is transposed. Elsewhere the two orders cost the same.
    """
    return jnp.matmul(x_xI, w_IO, preferred_element_type=dtype)


def matmul_forward(x_xI: jax.Array, w_IO: jax.Array, dtype: DTypeLike | None):
    return matmul(x_xI, w_IO, dtype), (x_xI, w_IO)


def matmul_backward(dtype: DTypeLike | None, saved, dy_xO: jax.Array):
    x_xI, w_IO = saved
    dy_xO = dy_xO.astype(x_xI.dtype)
    rows = tuple(range(x_xI.ndim - 1))
    sum_rows = ((rows, rows), ((), ()))
    if x_xI.shape[-1] <= dy_xO.shape[-1]:
        dw_IO = jax.lax.dot_general(x_xI, dy_xO, sum_rows)
    else:
        dw_IO = jax.lax.dot_general(dy_xO, x_xI, sum_rows).T
    return jnp.matmul(dy_xO, w_IO.T), dw_IO


matmul.defvjp(matmul_forward, matmul_backward)


def vocabulary_logits(
    x_BTD: jax.Array, embedding: nnx.Param, output: nnx.Linear | None
) -> jax.Array:
    """Return logits_BTV in float32, by `output` or, without one, by the embedding.

    The operands keep the type of x. Sixteen bits would give the likeliest tokens the same
    logit where they differ by less than 1 in 256.
    """
    w_DV = embedding[...].T if output is None else output.kernel[...]
    return matmul(x_BTD, w_DV, jnp.float32)


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

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": gelu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}
INITIALIZERS = {  # of a matrix [I, O] that sums over its inputs
    "naive": nnx.initializers.normal(0.01),  # whatever the width
    "xavier": nnx.initializers.xavier_uniform(),  # Glorot and Bengio 2010
    "he": nnx.initializers.he_normal(),  # He et al. 2015
    "orthogonal": nnx.initializers.orthogonal(),  # Saxe et al. 2014
}


class Norm(nnx.Module):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016), in float32.

    Plain products: nnx.RMSNorm made a whole training step 5 % slower on a CPU.
    """

    def __init__(self, width: int, rms: bool, bias: bool):
        self.centre = not rms
        self.epsilon = 1e-6 if rms else 1e-5
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width)) if bias and not rms else None

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        y_BTD = x_BTD.astype(jnp.float32)
        if self.centre:
            y_BTD -= jnp.mean(y_BTD, -1, keepdims=True)
        variance_BT1 = jnp.mean(y_BTD * y_BTD, -1, keepdims=True)
        y_BTD = y_BTD * jax.lax.rsqrt(variance_BT1 + self.epsilon) * self.scale[...]
        if self.bias is not None:
            y_BTD += self.bias[...]
        return y_BTD.astype(x_BTD.dtype)


def dropout(x_BTD: jax.Array, rate: float, row_keys_B, site: int) -> jax.Array:
    """Drop elements, each row from its own key: the same masks under every sharding."""
    if rate == 0.0 or row_keys_B is None:
        return x_BTD

    def one_row(key: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, site)
        return jax.random.bernoulli(key, 1.0 - rate, x_BTD.shape[1:])

    kept_BTD = jax.vmap(one_row)(row_keys_B)
    return jnp.where(kept_BTD, x_BTD / (1.0 - rate), 0).astype(x_BTD.dtype)


def one_core_a_device() -> bool:
    """Tell whether each device is a CPU with no second core: layers then stay calls.

    Written out one after the other, layers have no gradient of the residual stream in
    memory: XLA for CPUs sums it anew, from the last layer down, wherever a transposed copy
    of it is needed. As calls they hand it over. But a call waits for the one before, and
    two cores want more to do at once: they lose more than they gain.
    """
    if jax.default_backend() != "cpu":
        return False
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return cores <= jax.local_device_count()
