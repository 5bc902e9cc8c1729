"""Optimizers against the papers' lines in numpy, schedules against closed forms."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from configs.base import FAMILIES, Experiment
from experiments.run.build import build_task
from experiments.run.check import check
from lm.models.seq2seq.task import Seq2SeqConfig
from lm.models.transformer.config import TransformerConfig
from lm.optim import SCHEDULES, OptimConfig, decay_mask, learning_rate, optimizer, schedule
from lm.optimizers import OPTIMIZERS
from parallel.pipeline.stacking import stack_params
from tests.lm.papers import ORACLES

RATE = 0.01
HIDDEN = ("blocks",)
PARAMS = {
    "embedding": jnp.full((6, 4), 0.5),
    "blocks": {0: {"kernel": jnp.full((4, 4), 2.0), "bias": jnp.ones(4)}},
}


def plain(name: str, **changes) -> OptimConfig:
    return OptimConfig(
        name=name, learning_rate=RATE, schedule="constant", clip_norm=0.0,
        **{"weight_decay": 0.0} | changes,
    )  # fmt: skip


L2 = ("sgd", "momentum", "adagrad", "rmsprop", "adam")


def expected_updates(config: OptimConfig, rule, decay: float, p, grads) -> list:
    """Do every update of one parameter in float64; its decay is `decay`."""
    c, past, updates = dataclasses.replace(config, weight_decay=decay), {}, []
    p = np.asarray(p, np.float64)
    for t, g in enumerate(grads, 1):
        g = np.asarray(g, np.float64)
        if config.name in L2:
            step = rule(c, g + decay * p, p, t, past)
        elif config.name == "lamb":
            step = rule(c, g, p, t, past)
        else:
            step = rule(c, g, p, t, past) + decay * p
        updates.append(-RATE * step)
        p = p + updates[-1]
    return updates


CASES = [(name, False) for name in OPTIMIZERS] + [("momentum", True)]


@pytest.mark.parametrize("name, nesterov", CASES)
def test_every_update_is_the_papers(name, nesterov):
    """At large and at small gradients, decayed (the kernel) and not (the others)."""
    config = plain(name, nesterov=nesterov, weight_decay=0.2, decay_mask="hidden")
    tx = optimizer(config, 100, HIDDEN)
    update, rng = jax.jit(tx.update), np.random.default_rng(0)

    def draw(one, scale=1.0):
        return {
            "blocks": {"kernel": jnp.float32(scale * one((32, 48)))},
            "embedding": jnp.float32(scale * one((40, 32))),
            "scale": jnp.float32(scale * one((32,))),
        }

    def far_from_zero(shape):  # so that no gradient cancels its decay
        return rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)

    rules = ORACLES[name]
    for scale in (1e-2, 1e-5):
        start = draw(far_from_zero)
        grads = [draw(rng.standard_normal, scale) for _ in range(5)]
        params, state, found = start, jax.jit(tx.init)(start), []
        for g in grads:
            updates, state = update(g, state, params, value=1.0)
            params = optax.apply_updates(params, updates)
            found.append(jax.tree.leaves(updates))
        leaves = zip(jax.tree.leaves(start), *map(jax.tree.leaves, grads), strict=True)
        for index, (p, *gs) in enumerate(leaves):
            decay = config.weight_decay if index == 0 else 0.0
            expected = expected_updates(config, rules[index > 0], decay, p, gs)
            for ours, theirs in zip(found, expected, strict=True):
                # Newton-Schulz makes the rounding of small singular values larger.
                atol = (1e-4 if name == "muon" else 2e-6) * np.abs(theirs).max()
                np.testing.assert_allclose(ours[index], theirs, rtol=2e-5, atol=atol)
    if name == "adafactor":
        assert max(x.size for x in jax.tree.leaves(state)) < 40 * 32 / 4


def muon_shapes(task, params) -> list[tuple[int, ...]]:
    """Return the shapes of the parameters that Muon keeps a momentum of."""
    tx = optimizer(OptimConfig(name="muon"), 10, task.hidden)
    states = jax.tree.leaves(
        jax.eval_shape(tx.init, params),
        is_leaf=lambda node: isinstance(node, contrib.MuonState),
    )
    states = [state for state in states if isinstance(state, contrib.MuonState)]
    return sorted(x.shape for state in states for x in jax.tree.leaves(state.mu))


def test_hidden_matrices_are_those_of_every_layer_of_every_family():
    models = [family() for family in FAMILIES.values()] + [
        TransformerConfig(scan_layers=True, tied=False),
        Seq2SeqConfig(kind="recurrent", tied=False),
    ]
    for model in models:
        task = build_task(Experiment(model=model), 300)
        if not task.hidden:
            assert type(model).__name__ in ("HmmConfig", "NgramConfig")
            continue
        params = jax.eval_shape(task.init, jax.random.key(0))
        leaves = jax.tree.leaves_with_path(params)
        kernels = [
            (path, x.shape) for path, x in leaves
            if path[-1].key == "kernel" and path[0].key != "output"
        ]  # fmt: skip
        assert muon_shapes(task, params) == sorted(shape for _, shape in kernels)
        if "scanned_layers" not in params:
            decays = decay_mask(OptimConfig(decay_mask="hidden"), task.hidden)(params)
            chosen = [path for path, yes in jax.tree.leaves_with_path(decays) if yes]
            assert chosen == [path for path, _ in kernels]
        if task.stages:  # a pipeline's tree
            order = np.arange(task.stages.num_layers)
            stack = jax.eval_shape(lambda p, o=order: stack_params(p, o), params)
            stacked = muon_shapes(task, stack)
            assert sum(map(math.prod, stacked)) == sum(math.prod(s) for _, s in kernels)


def test_a_model_without_hidden_matrices_is_refused_at_the_start():
    muon, hidden = OptimConfig(name="muon"), OptimConfig(decay_mask="hidden")
    hmm, ngram = FAMILIES["hmm"](training="gradient"), FAMILIES["ngram"]()
    for model in (hmm, ngram):
        for optim, words in [(muon, "name=muon"), (hidden, "decay_mask=hidden")]:
            with pytest.raises(ValueError, match=f"{words} .* has none"):
                check(Experiment(model=model, optim=optim))
    check(Experiment(model=hmm))
    check(Experiment(optim=muon))


def test_decay_masks():
    for mask, expected in [
        ("matrices", [False, True, True]),
        ("hidden", [False, True, False]),
        ("all", [True, True, True]),
    ]:  # bias, kernel, embedding
        decays = decay_mask(OptimConfig(decay_mask=mask), HIDDEN)(PARAMS)
        assert jax.tree.leaves(decays) == expected


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scanned_layers_are_updated_like_layers_apart(name):
    keys = jax.random.split(jax.random.key(0), 3)
    layers = {
        i: {"kernel": jax.random.normal(key, (32, 48)), "bias": jnp.full(48, i + 1.0)}
        for i, key in enumerate(keys)
    }
    embedding = jax.random.normal(jax.random.key(1), (40, 32))

    def stack(layers):
        return jax.tree.map(lambda *x: jnp.stack(x), *layers.values())

    def three_updates(tx, params):
        @jax.jit
        def update(params, state):
            grads = jax.tree.map(lambda x: jnp.sin(3 * x), params)
            updates, state = tx.update(grads, state, params, value=1.0)
            return optax.apply_updates(params, updates), state

        state = jax.jit(tx.init)(params)
        for _ in range(3):
            params, state = update(params, state)
        return params

    # A mask is the same function for every optimizer: one goes through all three.
    for mask in ("hidden", "matrices", "all") if name == "adamw" else ("hidden",):
        config = OptimConfig(name=name, decay_mask=mask, clip_adaptive=0.01, warmup_steps=2)
        tx = optimizer(config, 100, ("layers",))
        apart = three_updates(tx, {"embedding": embedding, "layers": layers})
        expected = {
            "embedding": apart["embedding"], "scanned_layers": stack(apart["layers"])
        }  # fmt: skip
        scanned = {"embedding": embedding, "scanned_layers": stack(layers)}
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            three_updates(tx, scanned),
            expected,
        )


def expected_rates(name: str, warmup: int, n: int, cooldown: int) -> np.ndarray:
    """Return the rates of updates 1..n at peak 1, floor 0.1, halved every 40 updates."""
    t, top = np.arange(1, n + 1), max(warmup, 1)
    x = (t - top) / max(n - top, 1)  # 0 at the peak, 1 at the last update
    falling = {
        "constant": 1.0,
        "plateau": 1.0,
        "step": 0.5 ** ((t - top) // 40),
        "exponential": 0.5 ** ((t - top) / 40),
        "linear": 1 - 0.9 * x,
        "cosine": 0.55 + 0.45 * np.cos(np.pi * x),
        "inverse_sqrt": (top / t) ** 0.5,
        "wsd": 1 - 0.9 * np.maximum(t - (n - cooldown), 0) / cooldown,
    }[name]
    return np.where(t <= top, t / top, falling)


LAST = {  # the rate of update 110 after a warm-up of 10
    "constant": 1.0, "plateau": 1.0, "step": 0.25, "exponential": 0.5**2.5, "linear": 0.1,
    "cosine": 0.1, "inverse_sqrt": (10 / 110) ** 0.5, "wsd": 0.1,
}  # fmt: skip


def rates(name: str, steps: int, num_updates: int = 0, **changes) -> np.ndarray:
    config = OptimConfig(learning_rate=1.0, schedule=name, decay_every=40, **changes)
    rate = jax.vmap(schedule(config, steps))
    # Always as many, so that JAX compiles each operation once.
    return np.asarray(rate(jnp.arange(150)))[: num_updates or steps]


def test_schedules_warm_up_to_the_peak_and_fall_to_their_last_update():
    for name in SCHEDULES:
        found = rates(name, 110, warmup_steps=10)
        assert found[[0, 9, 109]] == pytest.approx([0.1, 1.0, LAST[name]], rel=1e-5), name
        for warmup, cooldown in [(10, 20), (1, 22), (0, 22)]:
            found = rates(name, 110, warmup_steps=warmup)
            expected = expected_rates(name, warmup, 110, cooldown)
            np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)
        # A schedule that ends before the run does stays where it ended.
        longer = rates(name, 500, 150, warmup_steps=10, decay_steps=110)
        np.testing.assert_allclose(longer[:110], rates(name, 110, warmup_steps=10))
        if name in ("linear", "cosine", "wsd"):
            np.testing.assert_allclose(longer[110:], 0.1, rtol=1e-5)


def test_short_schedules_reach_their_last_rate_too():
    for name in ("linear", "cosine", "wsd"):
        assert rates(name, 1)[0] == 1.0  # a run of one update has the peak
        assert rates(name, 2) == pytest.approx([1.0, 0.1])
        assert rates(name, 4, warmup_steps=3) == pytest.approx([1 / 3, 2 / 3, 1.0, 0.1])
    one = rates("wsd", 5, cooldown_fraction=0.2)
    assert one == pytest.approx([1.0, 1.0, 1.0, 1.0, 0.1])
    all_of_it = rates("wsd", 5, cooldown_fraction=1.0)
    assert all_of_it == pytest.approx([1.0, 0.775, 0.55, 0.325, 0.1])


def test_the_rate_in_force_is_that_of_the_update():
    config = OptimConfig(
        name="sgd", schedule="linear", learning_rate=1.0, clip_norm=0.0, weight_decay=0.0
    )
    tx, params, found = optimizer(config, 3), {"w": jnp.ones(3)}, []
    state = tx.init(params)
    for expected in (1.0, 0.55, 0.1):
        updates, state = tx.update(params, state, params, value=1.0)
        np.testing.assert_allclose(updates["w"], -expected, rtol=1e-6)
        found.append(float(learning_rate(state)))
    assert found == pytest.approx([1.0, 0.55, 0.1])


def plateau_rates(losses, window: int, patience: int, factor: float, floor: float):
    """PyTorch's ReduceLROnPlateau, stepped with the mean of each window of losses."""
    rate, best, bad, found = 1.0, math.inf, 0, []
    for i in range(len(losses)):
        if (i + 1) % window == 0:
            mean = np.mean(losses[i + 1 - window : i + 1])
            if mean < best * (1 - 1e-4):
                best, bad = mean, 0
            else:
                bad += 1
            if bad > patience:
                rate, bad = max(rate * factor, floor), 0
        found.append(rate)
    return found


def test_plateau_reduces_the_rate_when_the_loss_stands_still():
    losses = [3.0, 2.0, 1.0] + [1.0] * 24 + [0.5] * 12 + [0.6] * 40
    for patience in (1, 2):
        config = plain("sgd", patience=patience, window=3, final_fraction=0.2)
        config = dataclasses.replace(config, schedule="plateau", decay_rate=0.5)
        tx, params, found = optimizer(config, 1000), {"w": jnp.ones(3)}, []
        update, state = jax.jit(tx.update), tx.init(params)
        for value in losses:
            updates, state = update({"w": jnp.ones(3)}, state, params, value=value)
            found.append(float(learning_rate(state)) / RATE)
            np.testing.assert_allclose(updates["w"], -RATE * found[-1], rtol=1e-6)
        expected = plateau_rates(losses, 3, patience, 0.5, 0.2)
        assert found == pytest.approx(expected)
        assert {1.0, 0.5, 0.25, 0.2} == set(expected)


def first_update(config: OptimConfig, grads):
    tx = optimizer(config, 100)
    return jax.jit(tx.update)(grads, tx.init(PARAMS), PARAMS, value=1.0)[0]


def test_clipping_by_norm_and_by_value_and_adaptive():
    grads = jax.tree.map(lambda x: jnp.full(x.shape, 3.0), PARAMS)
    norm = float(optax.tree.norm(grads))

    def clipped(**changes):
        return first_update(dataclasses.replace(plain("sgd"), **changes), grads)

    by_norm = clipped(clip_norm=0.5)
    assert float(optax.tree.norm(by_norm)) == pytest.approx(RATE * 0.5, rel=1e-5)
    np.testing.assert_allclose(by_norm["embedding"], -RATE * 3.0 * 0.5 / norm, rtol=1e-5)
    by_value = clipped(clip_value=0.25)
    np.testing.assert_allclose(by_value["embedding"], -RATE * 0.25, rtol=1e-6)
    adaptive = clipped(clip_adaptive=0.01)
    kernel = adaptive["blocks"][0]["kernel"]
    # Brock et al. 2021: each unit (column) is clipped to 1 % of its weights' norm.
    np.testing.assert_allclose(
        jnp.linalg.norm(kernel, axis=0), RATE * 0.01 * jnp.full(4, 4.0), rtol=1e-4
    )
    loose = clipped(clip_norm=1e9)
    np.testing.assert_allclose(loose["embedding"], -RATE * 3.0, rtol=1e-6)


def test_moments_of_sixteen_bits_give_nearly_the_loss_in_half_the_bytes():
    rng = np.random.default_rng(0)
    x_BI, w_IO = rng.normal(size=(256, 32)), rng.normal(size=(32, 8))
    y_BO = x_BI @ w_IO + 0.1 * rng.normal(size=(256, 8))
    losses, sizes = {}, {}
    for moments in ("float32", "bfloat16"):
        config = OptimConfig(learning_rate=3e-2, moments=moments, weight_decay=0.0)
        tx = optimizer(config, 200)
        params = {"w": jnp.zeros((32, 8))}

        def loss(params):
            return jnp.mean((x_BI @ params["w"] - y_BO) ** 2)

        @jax.jit
        def train(params, tx=tx, loss=loss):
            def step(carry, _):
                params, state = carry
                value, grads = jax.value_and_grad(loss)(params)
                updates, state = tx.update(grads, state, params, value=value)
                return (optax.apply_updates(params, updates), state), value

            return jax.lax.scan(step, (params, tx.init(params)), None, 200)[1][-1]

        losses[moments] = float(train(params))
        state = jax.eval_shape(tx.init, params)
        sizes[moments] = sum(
            x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.ndim
        )
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01)
    assert sizes["bfloat16"] == sizes["float32"] / 2
    with pytest.raises(ValueError, match="decays by 0.999 an update would never fall"):
        OptimConfig(moments="bfloat16", b2=0.999).validate(1)
