"""Quantisation: its error is bounded, its gradient passes, and its bytes are real."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from lm.compress import stored
from lm.compress.leaves import flat
from lm.compress.prune import PruneConfig, prune_now
from lm.compress.quantise import QuantiseConfig, calibrated, quantised
from tests.lm.compress.model import tree

LARGEST = {8: 127, 4: 7}


def oracle(x: np.ndarray, bits: int, group: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix in plain NumPy; return it and half a step of each weight."""
    columns = np.moveaxis(x, dim, -1)
    groups = columns.reshape(*columns.shape[:-1], -1, group or columns.shape[-1])
    step = np.abs(groups).max(-1, keepdims=True) / np.float32(LARGEST[bits])
    codes = np.round(groups / step)
    half = np.broadcast_to(step / 2, groups.shape)
    return [np.moveaxis(y.reshape(columns.shape), -1, dim) for y in (codes * step, half)]


def test_codes_equal_the_formula_and_err_by_half_a_step():
    params = tree(num_layers=1)
    for bits, group in itertools.product((8, 4), (0, 4)):
        config = QuantiseConfig(weights=f"int{bits}", group=group)
        seen = flat(jax.jit(lambda: quantised(params, config))())  # noqa: B023
        for keys, x in flat(params).items():
            if keys[-1] in ("scale", "bias"):
                np.testing.assert_array_equal(seen[keys], x)
                continue
            dim = -1 if keys[-1] == "embedding" else -2
            expected, half = oracle(np.asarray(x), bits, group, dim)
            np.testing.assert_allclose(seen[keys], expected, rtol=1e-6, atol=1e-7)
            assert np.all(np.abs(seen[keys] - x) <= half * (1 + 1e-4))
            assert np.any(np.abs(seen[keys] - x) > half / 2)


def test_a_pattern_chooses_and_the_gradient_passes_through():
    params = tree(num_layers=1)
    config = QuantiseConfig(weights="int4", matrices="mlp/.*kernel$")

    def squares(params):
        seen = quantised(params, config)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(seen)), seen

    grad, seen = jax.jit(jax.grad(squares, has_aux=True))(params)
    whole = flat(seen)
    for keys, x in flat(params).items():
        assert np.array_equal(whole[keys], x) == ("mlp" not in keys or "bias" in keys)
        np.testing.assert_allclose(flat(grad)[keys], 2 * whole[keys], rtol=1e-6)


def test_calibration_lowers_the_error_that_it_weighs():
    params = tree(num_layers=1)
    rng = np.random.default_rng(3)
    weights = jax.tree.map(lambda x: jnp.asarray(rng.exponential(size=x.shape)), params)
    config = QuantiseConfig(weights="int4")

    @jax.jit
    def error(given, weights):
        seen = quantised(given, config)
        parts = jax.tree.map(
            lambda w, a, b: jnp.sum(w * (a - b) ** 2), weights, seen, params
        )
        return sum(jax.tree.leaves(parts))

    ones = jax.tree.map(jnp.ones_like, params)
    clip = jax.jit(lambda weights: calibrated(params, config, weights))
    plain, weighed = clip(ones), clip(weights)
    assert error(plain, ones) < min(error(weighed, ones), error(params, ones))
    assert error(weighed, weights) < min(error(plain, weights), error(params, weights))


def test_a_file_gives_back_what_the_model_sees_and_is_as_small_as_told(tmp_path):
    file = tmp_path / "model.safetensors"
    whole = tree(num_layers=1)
    matrices = sum(x.size for keys, x in flat(whole).items() if keys[-1] == "kernel")
    sparse = prune_now(whole, PruneConfig(kind="magnitude", sparsity=0.8))
    for bits, sparsity in itertools.product((0, 8, 4), (0.0, 0.8)):
        config = QuantiseConfig(weights=f"int{bits}" if bits else "none")
        params = sparse if sparsity else whole
        found, seen = stored.write(file, params, config), quantised(params, config)
        jax.tree.map(np.testing.assert_array_equal, stored.read(file), seen)
        total = sum(x.size for x in jax.tree.leaves(params))
        nonzero = sum(int(jnp.count_nonzero(x)) for x in jax.tree.leaves(seen))
        assert found["nonzero"] == nonzero
        assert found["bytes"] == file.stat().st_size
        arrays, _ = stored.stored(params, config)
        data = sum(x.nbytes for name, x in arrays.items() if not name.endswith("scale"))
        rest = (
            total
            - matrices
            - sum(
                x.size
                for keys, x in flat(params).items()
                if keys[-1] == "embedding" and bits
            )
        )
        if not sparsity and bits:
            # Where more than a quarter of the codes of 4 bits is 0, a mask saves more.
            assert 0.9 < data / (rest * 4 + (total - rest) * bits / 8) <= 1
        elif not bits and sparsity:
            gone = round(sparsity * matrices)
            expected = (total - gone) * 4 + matrices / 8
            assert expected <= data <= expected + 8  # each mask fills its last byte
