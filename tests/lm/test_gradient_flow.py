"""Gradients and activations that vanish, explode or keep their size; closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm.models.layers import INITIALIZERS
from lm.models.recurrence import output
from lm.models.recurrent import Layer, RecurrentConfig
from lm.models.setting import Setting
from lm.optim import OptimConfig, optimizer

STEPS, WIDTH = 50, 32


def layer_of(cell: str, forget_bias: float = 1.0) -> Layer:
    layer = Layer(RecurrentConfig(cell=cell, init="xavier", width=WIDTH), nnx.Rngs(0))
    if cell == "lstm":
        bias = layer.cell.dense_h.bias
        bias[...] = bias[...].reshape(4, -1).at[1].set(forget_bias).ravel()
    return layer


def inputs() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (1, STEPS, WIDTH))


def norms_by_lag(layer: Layer) -> np.ndarray:
    """Return |d h_T / d x_{T-k}| (Frobenius) for k = 0 .. T - 1."""

    def last(x_BTD):
        return output(layer.states(x_BTD, layer.zeros((1,)), None))[0, -1]

    jacobian_DTD = np.asarray(jax.jit(jax.jacrev(last))(inputs())[:, 0])
    return np.linalg.norm(jacobian_DTD, axis=(0, 2))[::-1]


def fit(norms: np.ndarray) -> tuple[float, float]:
    """Return the slope of the logarithm against the lag, and its R^2."""
    lags, logs = np.arange(STEPS), np.log(norms)
    slope, start = np.polyfit(lags, logs, 1)
    return slope, 1 - np.var(logs - slope * lags - start) / np.var(logs)


def test_plain_rnn_gradient_is_the_product_of_its_jacobians_and_vanishes():
    layer = layer_of("rnn")
    w_x, w_h = (np.asarray(d.kernel[...], "f8") for d in (layer.input, layer.cell.dense_h))
    h, slopes_TD = np.zeros(WIDTH), []
    for x in np.asarray(inputs()[0], "f8"):
        h = np.tanh(x @ w_x + h @ w_h)
        slopes_TD.append(1 - h * h)
    expected, backward = [], np.eye(WIDTH)
    for slopes in reversed(slopes_TD):
        backward = backward * slopes  # d h_T / d (sum of products at this step)
        expected.append(np.linalg.norm(backward @ w_x.T))
        backward = backward @ w_h.T
    found = norms_by_lag(layer)
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    slope, r_squared = fit(found)
    assert slope < -0.4 and r_squared > 0.99  # at least a third is lost at each step
    assert found[-1] < 1e-9 * found[0]


def test_lstm_gradient_does_not_vanish_through_an_open_forget_gate():
    norms = norms_by_lag(layer_of("lstm", forget_bias=3.0))
    assert abs(fit(norms)[0]) < 0.03
    assert norms.min() > 0.2 * norms[0]


def test_lstm_gradient_vanishes_as_its_forget_gate_says():
    slopes = {bias: fit(norms_by_lag(layer_of("lstm", bias)))[0] for bias in (0.0, 1.0)}
    assert slopes[0.0] < -0.4, "closed half-way it is no better than a plain RNN"
    assert -0.25 < slopes[1.0] < -0.1


@pytest.mark.parametrize("bias", [0.0, 1.0, 3.0])
def test_lstm_cell_path_is_the_product_of_the_forget_gates(bias):
    layer = layer_of("lstm", bias)
    layer.cell.dense_h.kernel[...] = jnp.zeros_like(layer.cell.dense_h.kernel[...])

    def last_cell(c_BD):
        c_BTD, _ = layer.states(inputs(), (c_BD, jnp.zeros((1, WIDTH))), None)
        return jnp.sum(c_BTD[:, -1])

    found = jax.jit(jax.grad(last_cell))(jnp.zeros((1, WIDTH)))[0]
    w_f = np.split(np.asarray(layer.input.kernel[...], "f8"), 4, 1)[1]
    gates_TD = 1 / (1 + np.exp(-(np.asarray(inputs()[0], "f8") @ w_f + bias)))
    np.testing.assert_allclose(found, gates_TD.prod(0), rtol=1e-4)


@pytest.mark.parametrize(
    "init, gain", [("he", 1.0), ("xavier", 0.5), ("naive", 512 * 0.01**2 / 2)]
)
def test_relu_layers_multiply_the_mean_square_by_the_gain_of_their_initialiser(init, gain):
    """Exact in the mean; of the logarithm, each layer has the variance 5 / width.

    That is of Gaussian matrices (Hanin and Nica 2020, theorem 1); of uniform ones a little
    less. The bound is three deviations: a factor of 3.8 either way after 20 layers.
    """
    width, depth = 512, 20
    make = jax.jit(lambda key: INITIALIZERS[init](key, (width, width), jnp.float32))
    x = jax.random.normal(jax.random.key(0), (1, width), jnp.float32)
    start = float(jnp.mean(x * x))
    for key in jax.random.split(jax.random.key(1), depth):
        x = jax.nn.relu(x @ make(key))
    change = np.log(float(jnp.mean(x * x)) / start)
    bound = 3 * (5 * depth / width) ** 0.5
    assert abs(change - depth * np.log(gain)) < bound
    if init == "he":
        assert 0.25 < np.exp(change) < 4
    else:
        assert np.exp(change) < 1e-5


def exploding_gradient():
    """Return parameters and gradient of a ReLU RNN, its matrices 1.3 times those of He."""
    config = RecurrentConfig(
        cell="rnn", activation="relu", init="he", width=16, num_layers=3
    )
    task = config.task(Setting(30, 0))
    params = jax.jit(task.init)(jax.random.key(0))
    params["layers"] = jax.tree.map(lambda x: 1.3 * x, params["layers"])
    batch = {
        "tokens": jax.random.randint(jax.random.key(1), (4, 51), 0, 30),
        "segments": jnp.ones((4, 51), int),
        "row": jnp.arange(4),
    }

    def mean_loss(params):
        loss_sum, sums = task.loss(params, batch, None)
        return loss_sum / sums["tokens"]

    return params, jax.jit(jax.grad(mean_loss))(params)


def norm(tree) -> float:
    return float(np.sqrt(sum(np.sum(np.square(x, dtype="f8")) for x in leaves(tree))))


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def test_clipping_bounds_the_update_of_an_exploding_gradient():
    params, grads = exploding_gradient()
    size, rate = norm(grads), 0.3
    assert 1e3 < size < 1e30

    def update(grads, **clip):
        config = OptimConfig(
            name="sgd", learning_rate=rate, schedule="constant", weight_decay=0.0, **clip
        )
        tx = optimizer(config, 1)
        return tx.update(grads, tx.init(params), params, value=jnp.float32(0))[0]

    assert norm(update(grads, clip_norm=0.0)) == pytest.approx(rate * size, rel=1e-4)
    clipped = update(grads, clip_norm=0.5)
    assert norm(clipped) == pytest.approx(rate * 0.5, rel=1e-4)
    for ours, whole in zip(leaves(clipped), leaves(grads), strict=True):
        np.testing.assert_allclose(ours, whole * (-rate * 0.5 / size), rtol=1e-4)
    small = jax.tree.map(lambda g: g * (0.1 / size), grads)
    assert norm(update(small, clip_norm=0.5)) == pytest.approx(rate * 0.1, rel=1e-4)
