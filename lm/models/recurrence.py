"""A recurrence over time whose weights get their gradient from one product after the scan.

Autodiff of a scan adds to the gradient of the weights in each time step, so it reads and
writes a whole matrix each time. Under GSPMD, with rows on several devices, each time step
even sums over devices. Here the backward scan returns only the gradients of the products
with the state. One matrix product turns them into the gradient of the weights (as in
Appleyard et al. 2016).

Shapes: B batch, T time, D width of a state, G gates x D. A carry is a pytree of states
[B, D]: (c, h) for the LSTM, h for the other cells.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Carry = Any
# (carry, products with the inputs [B, G], products with the state [B, G]) -> carry
Step = Callable[[Carry, jax.Array, jax.Array], Carry]


def rnn_step(activation: Callable, h_BD, inputs_BG, states_BG) -> jax.Array:
    return activation(inputs_BG + states_BG)


def lstm_step(carry: Carry, inputs_BG, states_BG) -> Carry:
    i, f, g, o = jnp.split(inputs_BG + states_BG, 4, axis=-1)
    c_BD = jax.nn.sigmoid(f) * carry[0] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return c_BD, jax.nn.sigmoid(o) * jnp.tanh(c_BD)


def gru_step(h_BD, inputs_BG, states_BG) -> jax.Array:
    (a_r, a_z, a_n), (u_r, u_z, u_n) = (
        jnp.split(x, 3, axis=-1) for x in (inputs_BG, states_BG)
    )
    z_BD = jax.nn.sigmoid(a_z + u_z)
    n_BD = jnp.tanh(a_n + jax.nn.sigmoid(a_r + u_r) * u_n)
    return (1 - z_BD) * n_BD + z_BD * h_BD


def output(carry: Carry) -> jax.Array:
    return carry[1] if isinstance(carry, tuple) else carry


def scan(step: Step, kernel_DG, bias_G, carry, inputs_TBG, more_TBG, cut_T, first_TB1):
    """Return the carries after every step; `more_TBG` is added to products with the state.

    The gradient of `more_TBG` is that of these products; `forward` passes zeros to get it.
    """

    def body(carry: Carry, inputs):
        inputs_BG, more_BG, cut, first_B1 = inputs
        if cut is not None:
            carry = jax.tree.map(
                lambda x: jnp.where(cut, jax.lax.stop_gradient(x), x), carry
            )
        if first_B1 is not None:
            carry = jax.tree.map(lambda x: jnp.where(first_B1, 0, x), carry)
        states_BG = output(carry) @ kernel_DG
        for term in (bias_G, more_BG):
            states_BG = states_BG if term is None else states_BG + term
        carry = step(carry, inputs_BG, states_BG)
        return carry, carry

    return jax.lax.scan(body, carry, (inputs_TBG, more_TBG, cut_T, first_TB1))[1]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(step: Step, kernel_DG, bias_G, carry, inputs_TBG, cut_T, first_TB1) -> Carry:
    """Return the carries after every step, a pytree of [T, B, D].

    The gradient stops before the steps that `cut_T` marks. The carry is zeroed before the
    steps that `first_TB1` marks. Both may be None, and so may the bias.
    """
    return scan(step, kernel_DG, bias_G, carry, inputs_TBG, None, cut_T, first_TB1)


def forward(step: Step, kernel_DG, bias_G, carry, inputs_TBG, cut_T, first_TB1):
    # The weights are constants of this function, so the scan of its backward pass does not
    # add up their gradient.
    def run(carry, inputs_TBG, more_TBG):
        arrays = carry, inputs_TBG, more_TBG, cut_T, first_TB1
        return scan(step, kernel_DG, bias_G, *arrays)

    more_TBG = jnp.zeros_like(inputs_TBG)
    carries, pull = jax.vjp(run, carry, inputs_TBG, more_TBG)
    return carries, (pull, bias_G, output(carry), output(carries), first_TB1)


def backward(step: Step, saved, d_carries):
    pull, bias_G, start_BD, h_TBD, first_TB1 = saved
    d_carry, d_inputs_TBG, d_states_TBG = pull(d_carries)
    # The states that the weights were multiplied with: those before each step.
    before_TBD = jnp.concatenate([start_BD[None], h_TBD[:-1]])
    if first_TB1 is not None:
        before_TBD = jnp.where(first_TB1, 0, before_TBD)
    d_kernel_DG = jnp.einsum("tbd,tbg->dg", before_TBD, d_states_TBG)
    d_bias_G = None if bias_G is None else jnp.sum(d_states_TBG, (0, 1))
    return d_kernel_DG, d_bias_G, d_carry, d_inputs_TBG, None, None


recur.defvjp(forward, backward)
