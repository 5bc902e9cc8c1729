"""Optimizers, schedules and clipping against closed forms and optax used directly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.optim import (
    DECAY_MASKS,
    OPTIMIZERS,
    SCHEDULES,
    OptimConfig,
    decay_mask,
    learning_rate,
    optimizer,
    schedule,
)

PARAMS = {
    "embedding": jnp.full((6, 4), 0.5),
    "layers": {0: {"kernel": jnp.full((4, 4), 2.0), "bias": jnp.ones(4)}},
}


def first_update(config: OptimConfig, grads=None, params=PARAMS, value=1.0):
    tx = optimizer(config, 100)
    grads = grads or jax.tree.map(
        lambda x: 0.01 * jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape),
        params,
    )
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params, value=value)
    return updates, state, grads


def plain(name: str, **changes) -> OptimConfig:
    return OptimConfig(
        name=name, learning_rate=0.1, schedule="constant", clip_norm=0.0,
        weight_decay=0.0, **changes,
    )  # fmt: skip


CLOSED_FORMS = {  # the first update from zero state, for gradient g
    "sgd": lambda g: -0.1 * g,
    "momentum": lambda g: -0.1 * g,
    "adagrad": lambda g: -0.1 * g / np.sqrt(0.1 + g**2 + 1e-8),
    "rmsprop": lambda g: -0.1 * g / np.sqrt(0.05 * g**2 + 1e-8),
    "adam": lambda g: -0.1 * g / (np.abs(g) + 1e-8),
    "adamw": lambda g: -0.1 * g / (np.abs(g) + 1e-8),
    "lion": lambda g: -0.1 * np.sign(g),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_first_update_has_its_closed_form(name):
    updates, _, grads = first_update(plain(name))
    for u, g in zip(jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True):
        expected = CLOSED_FORMS[name](np.asarray(g, np.float64))
        np.testing.assert_allclose(u, expected, rtol=1e-4, atol=1e-9)


def test_lamb_scales_by_the_trust_ratio():
    updates, _, grads = first_update(plain("lamb"))
    g, p = grads["layers"][0]["kernel"], PARAMS["layers"][0]["kernel"]
    direction = g / (jnp.abs(g) + 1e-8)
    expected = -0.1 * direction * jnp.linalg.norm(p) / jnp.linalg.norm(direction)
    np.testing.assert_allclose(updates["layers"][0]["kernel"], expected, rtol=1e-4)


def test_muon_orthogonalises_hidden_matrices_and_leaves_the_rest_to_adam():
    keys = jax.random.split(jax.random.key(0), 2)
    grads = {
        "embedding": jax.random.normal(keys[0], (6, 4)),
        "layers": {0: {"kernel": jax.random.normal(keys[1], (4, 4)), "bias": jnp.ones(4)}},
    }
    updates, _, _ = first_update(plain("muon"), grads)
    before, after = (
        np.linalg.svd(tree["layers"][0]["kernel"], compute_uv=False)
        for tree in (grads, updates)
    )
    # Newton-Schulz brings singular values between about 0.7 and 1.2 of one value.
    assert before[0] / before[-1] > 4
    assert after[0] / after[-1] < 1.8
    # Optax's Muon gives the rest to Adam with Nesterov momentum (Dozat 2016).
    expected = -0.1 * np.sign(grads["embedding"]) * (1 + 0.9 * 0.1 / (1 - 0.9**2))
    np.testing.assert_allclose(updates["embedding"], expected, rtol=1e-3)


def test_adafactor_equals_optax_and_keeps_factors():
    params = {"layers": {0: {"kernel": jnp.ones((64, 96))}}}
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape), params)
    updates, state, _ = first_update(plain("adafactor"), grads, params)
    reference = optax.adafactor(0.1, min_dim_size_to_factor=32)
    expected, _ = reference.update(grads, reference.init(params), params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), updates, expected
    )
    assert max(x.size for x in jax.tree.leaves(state)) < 64 * 96


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends(name):
    rates = {"sgd": 1.0, "momentum": 0.1, "adagrad": 0.3, "lamb": 0.05, "adafactor": 0.3}
    config = plain(name)
    config = dataclasses.replace(config, learning_rate=rates.get(name, 0.03))
    target = jax.random.normal(jax.random.key(1), (32, 32)) * 0.3
    params = {"layers": {0: {"kernel": jnp.full((32, 32), 0.1)}}}
    tx = optimizer(config, 200)

    def loss(params):
        return 0.5 * jnp.mean((params["layers"][0]["kernel"] - target) ** 2) * 32

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    state, start = tx.init(params), loss(params)
    for _ in range(200):
        params, state = step(params, state)
    assert loss(params) < 0.2 * start


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("mask", DECAY_MASKS)
def test_weight_decay_reaches_what_the_mask_says(name, mask):
    config = plain(name, decay_mask=mask)
    without, _, grads = first_update(config)
    config = dataclasses.replace(config, weight_decay=0.3)
    with_decay, _, _ = first_update(config, grads)
    wanted = decay_mask(config)(PARAMS)
    expected = {
        "matrices": (True, False, True), "hidden": (False, False, True), "all": (True,) * 3,
    }[mask]  # fmt: skip
    assert tuple(jax.tree.leaves(wanted)) == expected
    if name == "lamb":  # its trust ratio couples decay to the norm of the whole leaf
        return
    for a, b, decays in zip(
        jax.tree.leaves(without), jax.tree.leaves(with_decay), expected, strict=True
    ):
        assert np.allclose(a, b, rtol=1e-6, atol=0) != decays


SHAPES = {  # (warmup 10, peak 1, 110 steps in all): value at 60 and at the end, 110
    "constant": (1.0, 1.0),
    "plateau": (1.0, 1.0),
    "step": (0.5, 0.25),
    "exponential": (0.5 ** (50 / 40), 0.5 ** (100 / 40)),
    "linear": (0.55, 0.1),
    "cosine": (0.55, 0.1),
    "inverse_sqrt": ((10 / 60) ** 0.5, (10 / 110) ** 0.5),
    "wsd": (1.0, 0.1),
}


@pytest.mark.parametrize("mask", DECAY_MASKS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scanned_layers_are_updated_like_layers_apart(name, mask):
    keys = jax.random.split(jax.random.key(0), 3)
    layers = {
        i: {"kernel": jax.random.normal(key, (32, 48)), "bias": jnp.full(48, i + 1.0)}
        for i, key in enumerate(keys)
    }
    embedding = jax.random.normal(jax.random.key(1), (40, 32))
    config = OptimConfig(name=name, decay_mask=mask, clip_adaptive=0.01, warmup_steps=2)
    tx = optimizer(config, 100)

    def stack(layers):
        return jax.tree.map(lambda *x: jnp.stack(x), *layers.values())

    @jax.jit
    def update(params, state):
        grads = jax.tree.map(lambda x: jnp.sin(3 * x), params)
        updates, state = tx.update(grads, state, params, value=1.0)
        return optax.apply_updates(params, updates), state

    def three_updates(params):
        state = jax.jit(tx.init)(params)
        for _ in range(3):
            params, state = update(params, state)
        return params

    apart = three_updates({"embedding": embedding, "layers": layers})
    scanned = three_updates({"embedding": embedding, "scanned_layers": stack(layers)})
    expected = {
        "embedding": apart["embedding"], "scanned_layers": stack(apart["layers"])
    }  # fmt: skip
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        scanned,
        expected,
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_shapes(name):
    rate = schedule(
        OptimConfig(learning_rate=1.0, schedule=name, warmup_steps=10, decay_every=40), 110
    )
    assert float(rate(0)) == pytest.approx(0.1)
    assert float(rate(9)) == pytest.approx(1.0)
    assert float(rate(10)) == pytest.approx(1.0)
    assert float(rate(60)) == pytest.approx(SHAPES[name][0], rel=1e-5)
    assert float(rate(110)) == pytest.approx(SHAPES[name][1], rel=1e-5)


def test_plateau_reduces_the_rate_when_the_loss_stands_still():
    config = plain("sgd", patience=2, window=3, decay_rate=0.5, final_fraction=0.2)
    config = dataclasses.replace(config, schedule="plateau")
    tx = optimizer(config, 1000)
    params = {"w": jnp.ones(3)}
    state, rates = tx.init(params), []
    update = jax.jit(tx.update)
    for value in [3.0, 2.0, 1.0] + [1.0] * 60:
        updates, state = update({"w": jnp.ones(3)}, state, params, value=value)
        rates.append(float(learning_rate(state)))
        np.testing.assert_allclose(updates["w"], -rates[-1], rtol=1e-6)
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.02)  # the floor
    assert sorted(rates, reverse=True) == rates
    assert 0.05 in [round(r, 6) for r in rates]


def test_clipping_by_norm_and_by_value_and_adaptive():
    grads = jax.tree.map(lambda x: jnp.full(x.shape, 3.0), PARAMS)
    norm = float(optax.tree.norm(grads))

    def clipped(**changes):
        return first_update(dataclasses.replace(plain("sgd"), **changes), grads)[0]

    by_norm = clipped(clip_norm=0.5)
    assert float(optax.tree.norm(by_norm)) == pytest.approx(0.1 * 0.5, rel=1e-5)
    np.testing.assert_allclose(by_norm["embedding"], -0.1 * 3.0 * 0.5 / norm, rtol=1e-5)
    by_value = clipped(clip_value=0.25)
    np.testing.assert_allclose(by_value["embedding"], -0.1 * 0.25, rtol=1e-6)
    adaptive = clipped(clip_adaptive=0.01)
    kernel = adaptive["layers"][0]["kernel"]
    # Brock et al. 2021: each unit (column) is clipped to 1 % of its weights' norm.
    np.testing.assert_allclose(
        jnp.linalg.norm(kernel, axis=0), 0.1 * 0.01 * jnp.full(4, 4.0), rtol=1e-4
    )
    loose = clipped(clip_norm=1e9)
    np.testing.assert_allclose(loose["embedding"], -0.3, rtol=1e-6)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"name": "adma"}, "adamw"),
        ({"schedule": "cosin"}, "cosine"),
        ({"learning_rate": 0.0}, "positive"),
        ({"clip_norm": -1.0}, "negative"),
        ({"window": 0}, "at least 1"),
    ],
)
def test_bad_config_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        OptimConfig(**changes).validate()
