"""The parts of layers: the matrix product, activations, initialisers, norms, dropout.

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


def platform() -> str:
    """Return "cpu", "gpu" or "tpu": of the mesh in force, or else of this process.

    A program may be compiled for devices that are not here.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x_xI: jax.Array, w_IO: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
    """Return x @ w, as `dtype` if given; sums are in float32 in either case.

    Its gradient differs from that of autodiff only in speed. The gradient of w sums over
    rows, so either x or dy must be transposed. Autodiff always transposes dy. XLA for CPUs
    then makes a transposed copy and computes dy again for each element of it, in an order
    that does not suit the memory. With a wide dy (the first matrix of an MLP, the head) a
    step of GPT-2 takes 1.2 to 1.5 times as long. So `matmul_backward` transposes the
    narrower one. On other platforms the two orders cost the same.
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


def lookup(table: nnx.Param, index: jax.Array) -> jax.Array:
    """Return the rows of the table at the index, in the table's type.

    The gradient of a row is a sum over all places where its token stands, so it is added up
    in float32. In bfloat16 such a sum stops growing at 256 times its addends.
    """
    table_VD = table[...]
    return table_VD.astype(jnp.float32)[index].astype(table_VD.dtype)


def vocabulary_logits(
    x_BTD: jax.Array, embedding: nnx.Param, output: nnx.Linear | None
) -> jax.Array:
    """Return logits_BTV in float32, by `output` or, without one, by the embedding.

    The operands keep the type of x. Logits of 16 bits would be equal for tokens whose
    logits differ by less than 1 in 256.
    """
    w_DV = embedding[...].T if output is None else output.kernel[...]
    return matmul(x_BTD, w_DV, jnp.float32)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Return GELU in its tanh form (Hendrycks and Gimpel 2016).

    The backward pass keeps only x and computes tanh(u) again, as 2 sigmoid(2u) - 1. If it
    called tanh, XLA would find that the forward pass has the same tanh, and would keep that
    array, as large as x, until the backward pass.
    """
    return jax.nn.gelu(x)


def gelu_forward(x: jax.Array):
    return gelu(x), x


def gelu_backward(x: jax.Array, dy: jax.Array):
    scale, cubic = 2 * (2 / math.pi) ** 0.5, 0.044715
    s = jax.nn.sigmoid(scale * (x + cubic * x**3))
    return (dy * (s + x * s * (1 - s) * scale * (1 + 3 * cubic * x**2)),)


gelu.defvjp(gelu_forward, gelu_backward)


def exact_gelu(x: jax.Array) -> jax.Array:
    """Return x times the normal distribution's share below x."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": gelu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}
MORE_ACTIVATIONS = {"gelu_exact": exact_gelu, "swish": jax.nn.silu}
INITIALIZERS = {  # for a matrix [I, O] that sums over its inputs
    "naive": nnx.initializers.normal(0.01),  # ignores the width
    "xavier": nnx.initializers.xavier_uniform(),  # Glorot and Bengio 2010
    "he": nnx.initializers.he_normal(),  # He et al. 2015
    "orthogonal": nnx.initializers.orthogonal(),  # Saxe et al. 2014
}


class Norm(nnx.Module):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016), in float32.

    It is written out here because nnx.RMSNorm made a training step 5 % slower on a CPU.
    An `epsilon` of 0 is the usual one.
    """

    def __init__(self, width: int, rms: bool, bias: bool, epsilon: float = 0.0):
        self.centre = not rms
        self.epsilon = epsilon or (1e-6 if rms else 1e-5)
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
    """Zero a share of the elements; each row has its own key, on whatever device it is."""
    if rate == 0.0 or row_keys_B is None:
        return x_BTD

    def one_row(key: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, site)
        return jax.random.bernoulli(key, 1.0 - rate, x_BTD.shape[1:])

    kept_BTD = jax.vmap(one_row)(row_keys_B)
    return jnp.where(kept_BTD, x_BTD / (1.0 - rate), 0).astype(x_BTD.dtype)


def one_core_a_device() -> bool:
    """Tell whether each device is a CPU with no second core.

    Such devices are faster if layers stay function calls in the compiled program. XLA for
    CPUs would otherwise write out all layers one after the other, and sum the gradient of
    the residual stream again, from the last layer down, for each transposed copy of it.
    Calls hand the gradient over in memory. But a call waits for the call before, so two
    cores have less to do at once and lose more than they gain.
    """
    if platform() != "cpu":
        return False
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return cores <= jax.local_device_count()
