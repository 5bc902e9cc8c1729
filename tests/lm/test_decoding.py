"""Decoding against the full forward pass, token by token."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decoding import Sampling, generate, sample
from lm.models.setting import Setting
from lm.models.transformer.config import TransformerConfig
from lm.vocabulary import END_ID
from tests.lm.models.drawn import drawn

VOCAB, SEQ_LEN = 40, 24
PROMPTS = [[3, 7, 9], [5], [8, 1, 30, 22, 11, 2]]


@pytest.fixture(scope="module")
def model():
    config = TransformerConfig(
        width=16, num_layers=2, num_heads=4, num_kv_heads=2, positions="rotary"
    )
    task = config.task(Setting(VOCAB, SEQ_LEN))
    return task, drawn(task, 0.16)


def test_greedy_equals_argmax_of_the_full_pass(model):
    task, params = model
    new = generate(task, params, PROMPTS, 10, Sampling(temperature=0), seed=0)
    logits = jax.jit(task.logits)
    for prompt, tokens in zip(PROMPTS, new, strict=True):
        expected = list(prompt)
        for _ in range(10):
            # Zeros behind the text, whatever its length: no position sees a later one.
            padded = np.zeros((1, SEQ_LEN + 1), np.int32)
            padded[0, : len(expected)] = expected
            one = {"segments": np.ones_like(padded), "row": np.arange(1)}
            of_text = logits(params, {"tokens": padded} | one)
            likeliest = int(np.argmax(of_text[0, len(expected) - 1]))
            if likeliest == END_ID:
                break
            expected.append(likeliest)
        assert tokens == expected[len(prompt) :]


def test_a_prompt_gives_the_same_text_in_any_batch(model):
    task, params = model
    together = generate(task, params, PROMPTS, 8, Sampling(1.0), seed=5)
    alone = generate(task, params, PROMPTS[:1], 8, Sampling(1.0), seed=5)
    assert together[0] == alone[0]
    assert generate(task, params, PROMPTS, 8, Sampling(1.0), seed=6) != together


@pytest.mark.parametrize(
    "prompts, num_new, words",
    [
        ([], 4, "0 prompts were given"),
        ([[1], [], [2]], 4, r"3 prompts .* \[1\] have no token"),
        ([[1]], 0, "num_new is 0"),
    ],
)
def test_nothing_to_go_on_is_refused(model, prompts, num_new, words):
    with pytest.raises(ValueError, match=words):
        generate(*model, prompts, num_new, Sampling(), seed=0)


def draws(logits, sampling, num=4000):
    keys = jax.random.split(jax.random.key(0), num)
    tokens = jax.vmap(lambda key: sample(jnp.asarray(logits), key, sampling))(keys)
    return np.bincount(tokens, minlength=len(logits)) / num


LOGITS = np.log([0.05, 0.4, 0.3, 0.2, 0.05])


@pytest.mark.parametrize(
    "sampling, expected",
    [
        (Sampling(1.0), [0.05, 0.4, 0.3, 0.2, 0.05]),
        (Sampling(0.5), np.array([25, 1600, 900, 400, 25]) / 2950),
        (Sampling(1.0, top_k=2), [0, 4 / 7, 3 / 7, 0, 0]),
        (Sampling(1.0, top_p=0.6), [0, 4 / 7, 3 / 7, 0, 0]),
        (Sampling(1.0, top_p=0.3), [0, 1, 0, 0, 0]),
        (Sampling(1.0, top_k=3, top_p=0.5), [0, 4 / 7, 3 / 7, 0, 0]),
        (Sampling(0.0), [0, 1, 0, 0, 0]),
    ],
)
def test_sampling_follows_its_distribution(sampling, expected):
    # 4,000 draws: three standard deviations are under 0.025.
    np.testing.assert_allclose(draws(LOGITS, sampling), expected, atol=0.025)
    assert (draws(LOGITS, sampling)[np.asarray(expected) == 0] == 0).all()


def exact(logits, sampling):
    """Return each token's probability by the definitions, in float64."""
    logits = logits.astype(np.float64) / sampling.temperature
    order = np.argsort(-logits, kind="stable")
    kept = order[: sampling.top_k] if sampling.top_k else order
    p = np.exp(logits[kept] - logits.max())
    p /= p.sum()
    kept = kept[np.cumsum(p) - p < sampling.top_p]
    found = np.zeros(len(logits))
    found[kept] = np.exp(logits[kept] - logits.max())
    return found / found.sum()


def test_many_tokens_are_drawn_as_often_as_they_should_be():
    rng, num = np.random.default_rng(0), 20_000
    logits = rng.normal(0, 1.5, 60).astype("f4")
    logits[30:33] = logits[40:43] = np.sort(logits)[-9:-6]  # equal ones
    for temperature, top_k, top_p in itertools.product([0.7, 2.0], [0, 7, 99], [1.0, 0.8]):
        sampling = Sampling(temperature, top_k, top_p)
        p = exact(logits, sampling)
        error = np.abs(draws(logits, sampling, num) - p)
        assert (error[p == 0] == 0).all()
        # Five standard deviations of the share of `num` draws.
        assert (error <= 5 * np.sqrt(p * (1 - p) / num)).all(), sampling


@pytest.mark.parametrize("top_k", [0, 3])
def test_any_temperature_and_share_gives_tokens(top_k):
    for temperature in (1e-300, 1e-38):
        assert draws(LOGITS, Sampling(temperature, top_k), 50)[1] == 1
        assert draws(3000 * LOGITS, Sampling(temperature, top_k), 50)[1] == 1
    assert draws(LOGITS, Sampling(1.0, top_k, top_p=1e-300), 50)[1] == 1
    kept = np.array([0, 1, 1, 1, 0]) / 3 if top_k else np.full(5, 0.2)
    np.testing.assert_allclose(draws(LOGITS, Sampling(1e300, top_k)), kept, atol=0.025)


def test_nothing_is_sorted_that_need_not_be():
    def program(*sampling):
        def one(logits, key):
            return sample(logits, key, Sampling(*sampling))

        return str(jax.make_jaxpr(one)(jnp.zeros(9), jax.random.key(0)))

    for plain in [(1.0,), (1.0, 9), (0.0, 3, 0.5)]:
        assert not re.search("sort|top_k", program(*plain))
    assert re.search(r"top_k\[.*k=3\b", program(1.0, 3), re.DOTALL)
    assert "top_k" in program(1.0, 0, 0.5)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(value) for value in (-1.0, np.nan, np.inf)]
    + [Sampling(top_k=-1)]
    + [Sampling(top_p=value) for value in (0.0, 1.5, np.nan)],
)
def test_bad_sampling_is_refused(model, sampling):
    with pytest.raises(ValueError, match="expected"):
        generate(*model, [[1]], 1, sampling, seed=0)


def test_a_text_longer_than_the_context_is_refused(model):
    assert len(generate(*model, [[3] * 20], 4, Sampling(0.0), 0)) == 1
    with pytest.raises(ValueError, match="25 tokens together, .* context is 24"):
        generate(*model, [[3], [3] * 20], 5, Sampling(0.0), 0)
