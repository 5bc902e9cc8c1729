"""Layers with a backward pass of their own have the gradients of the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np

from lm.models.layers import gelu, matmul


def test_matmul_has_the_gradients_of_the_plain_product():
    keys = jax.random.split(jax.random.key(0), 3)
    # Wide to narrow and narrow to wide: another of the two is read transposed.
    for leading, num_in, num_out in [((4,), 3, 7), ((2, 4), 7, 3), ((2, 4), 5, 5)]:
        x = jax.random.normal(keys[0], (*leading, num_in))
        w = jax.random.normal(keys[1], (num_in, num_out))
        dy = jax.random.normal(keys[2], (*leading, num_out))
        y, pull = jax.vjp(matmul, x, w)
        expected, expected_pull = jax.vjp(jnp.matmul, x, w)
        np.testing.assert_array_equal(y, expected)
        for a, b in zip(pull(dy), expected_pull(dy), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_gelu_has_the_gradient_of_its_formula():
    x = np.concatenate([np.linspace(-12, 12, 4001), [-1e4, -50.0, 50.0, 1e4]])
    x = x.astype(np.float32).astype(np.float64)
    scale, cubic = np.sqrt(2 / np.pi), 0.044715
    tanh = np.tanh(scale * (x + cubic * x**3))
    exact = (1 + tanh) / 2 + x / 2 * (1 - tanh**2) * scale * (1 + 3 * cubic * x**2)

    def error(function):
        slope = jax.vmap(jax.grad(function))(jnp.asarray(x, jnp.float32))
        return np.max(np.abs(slope - exact))

    assert error(gelu) < error(jax.nn.gelu) < 1e-5
    np.testing.assert_array_equal(gelu(x), jax.nn.gelu(x))
    assert gelu(jnp.zeros(3, jnp.bfloat16)).dtype == jnp.bfloat16
