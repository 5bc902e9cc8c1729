"""Beam search against an exhaustive search of all texts, and against greedy decoding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.beam import Beam
from lm.decoding import Sampling, generate
from lm.models.recurrent import RecurrentConfig
from lm.models.setting import Setting
from lm.models.transformer.config import TransformerConfig
from lm.task import Task
from lm.vocabulary import END_ID
from tests.lm.models.drawn import drawn

VOCAB, NUM_NEW = 4, 4
PROMPTS = [[1, 2], [3], [2, 2, 1]]


@pytest.fixture(scope="module", params=["transformer", "gru"])
def model(request):
    if request.param == "gru":
        task = RecurrentConfig(cell="gru", width=8).task(Setting(VOCAB, 0))
    else:
        config = TransformerConfig(width=8, num_layers=1, num_heads=2)
        task = config.task(Setting(VOCAB, 16))
    return task, drawn(task, 0.5)


def every_text():
    """List every text of up to NUM_NEW tokens that ends, without its end mark."""
    for length in range(NUM_NEW):
        yield from itertools.product(range(1, VOCAB), repeat=length)


def log_likelihoods(task, params, prompt):
    """Map each text to its log likelihood, by the whole forward pass."""
    longest = len(prompt) + NUM_NEW
    texts = list(every_text())
    rows = np.zeros((len(texts), longest + 1), np.int32)
    for row, text in enumerate(texts):
        rows[row, : len(prompt) + len(text)] = [*prompt, *text]
    batch = {"tokens": jnp.asarray(rows), "segments": jnp.ones(rows.shape, int)}
    logits = jax.jit(task.logits)(params, batch)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    found = {}
    for row, text in enumerate(texts):
        start = len(prompt) - 1
        labels = [*text, END_ID]
        found[text] = sum(log_p[row, start + i, label] for i, label in enumerate(labels))
    return found


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 3.0])
def test_a_beam_that_holds_everything_is_exhaustive(model, length_penalty):
    task, params = model
    beam = Beam(size=VOCAB**NUM_NEW, length_penalty=length_penalty)
    best = generate(task, params, PROMPTS, NUM_NEW, beam, 0)
    for prompt, text in zip(PROMPTS, best, strict=True):
        scores = {
            each: value / ((5 + len(each) + 1) / 6) ** length_penalty
            for each, value in log_likelihoods(task, params, prompt).items()
        }
        expected = max(scores, key=scores.get)
        assert scores[tuple(text)] == pytest.approx(scores[expected], rel=1e-5)


def test_the_penalty_makes_texts_longer(model):
    task, params = model

    def length(penalty):
        beam = Beam(VOCAB**NUM_NEW, penalty)
        return sum(map(len, generate(task, params, PROMPTS, NUM_NEW, beam, 0)))

    lengths = [length(0.0), length(1.0), length(4.0)]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def test_a_beam_of_one_is_greedy(model):
    task, params = model
    greedy = generate(task, params, PROMPTS, 9, Sampling(temperature=0), 0)
    assert generate(task, params, PROMPTS, 9, Beam(1), 0) == greedy


def test_a_place_that_no_text_takes_is_not_the_best():
    """The end mark is impossible here, and a wide beam has places that stay free."""
    logits_V = jnp.array([-jnp.inf, 0.0, 1.0, 2.0])

    def decode(params, cache, tokens_BT, start_B):
        return jnp.broadcast_to(logits_V, (*tokens_BT.shape, VOCAB)), cache

    task = Task(None, None, None, lambda rows, length: jnp.zeros((rows, 1)), decode)
    for size in (2, 8, 99):
        assert generate(task, {}, [[1]], 2, Beam(size), 0) == [[3, 3]]


@pytest.mark.parametrize(
    "beam", [Beam(0), *(Beam(4, value) for value in (-1.0, 8.5, np.nan, np.inf))]
)
def test_bad_beams_are_refused(beam):
    with pytest.raises(ValueError, match="expected"):
        beam.validate()


def test_sources_need_an_encoder_and_tokens_a_vocabulary(model):
    task, params = model
    with pytest.raises(ValueError, match="this model has no encoder"):
        generate(task, params, [[1]], 2, Beam(), 0, np.zeros((1, 4), np.int32))
    with pytest.raises(ValueError, match="token 9 is unknown .* has 4 tokens"):
        generate(task, params, [[1, 9]], 2, Beam(), 0)
