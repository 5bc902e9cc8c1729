"""N-gram models against textbook formulas over dictionaries, on one device and on many."""

import collections
import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.run.ngram_counts import ngram_counting
from lm.data.bigram import bigram_counts, bigram_loss
from lm.data.rows.packing import first_fit
from lm.data.tokenizer import LEAST_VOCAB_SIZE, encode_documents, train_tokenizer
from lm.models.ngram.model import SMOOTHINGS, NgramConfig, counted, estimate, grams
from lm.models.setting import Setting
from parallel.counting.program import counting_program
from parallel.mesh import data_mesh, place_rows
from parallel.strategies import STRATEGIES
from tests.experiments.runs import WORDS
from tests.lm.models.greedy import assert_greedy

SEQ_LEN = 12


def texts() -> list[str]:
    """Lines whose words depend on the word before, so that longer contexts help."""
    rng, found = random.Random(0), []
    for _ in range(40):
        words = [rng.choice(WORDS)]
        for _ in range(rng.randint(2, 30)):
            follow = WORDS[3 * (WORDS.index(words[-1]) % 5) :][:3]
            words.append(rng.choice(follow if rng.random() < 0.8 else WORDS))
        found.append(" ".join(words).replace("e", "é"))
    return found


@functools.cache
def corpus(tokenizer: str):
    """Return packed rows to train on, others held out, and the vocabulary size."""
    made = train_tokenizer(tokenizer, texts(), 257 if tokenizer == "byte" else 280)
    documents = list(encode_documents(made, texts()))
    rows = [list(first_fit(part, SEQ_LEN)) for part in (documents[:32], documents[32:])]
    return *(to_batch(part) for part in rows), made.get_vocab_size()


def to_batch(rows) -> dict[str, np.ndarray]:
    tokens, segments = (np.stack(part).astype(np.int32) for part in zip(*rows, strict=True))
    return {"tokens": tokens, "segments": segments, "row": np.arange(len(tokens))}


def occurrences(batch, order: int):
    """Yield each target's context, at most n - 1 tokens of its segment, and the target."""
    for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True):
        for t in range(1, len(tokens)):
            if segments[t] and segments[t] == segments[t - 1]:
                first = max(np.flatnonzero(segments == segments[t])[0], t - order + 1)
                yield tuple(tokens[first:t].tolist()), int(tokens[t])


class Textbook:
    """Smoothed models as the papers write them, over dictionaries of occurrences."""

    def __init__(self, config: NgramConfig, batch, vocab_size: int):
        self.config, self.vocab_size = config, vocab_size
        self.found = list(occurrences(batch, config.order))
        self.raw, self.left = collections.Counter(), collections.defaultdict(set)
        for index, (context, word) in enumerate(self.found):
            for size in range(len(context) + 1):
                gram = (*context[len(context) - size :], word)
                self.raw[gram] += 1
                # Nothing to the left: a neighbour of its own.
                more = size < len(context)
                self.left[gram].add(context[-size - 1] if more else f"alone {index}")
        self.counts = {  # what Kneser-Ney counts, of each order
            gram: n if len(gram) == config.order else len(self.left[gram])
            for gram, n in self.raw.items()
        }
        if config.smoothing != "kneser_ney":
            self.counts = self.raw
        self.following = collections.defaultdict(dict)
        for gram, n in self.counts.items():
            self.following[gram[:-1]][gram[-1]] = n
        self.discount = {m: self.discounts(m) for m in range(1, config.order + 1)}
        if config.smoothing == "jelinek_mercer":
            self.weights = self.deleted_interpolation()

    def discounts(self, order: int):
        n = collections.Counter(c for g, c in self.counts.items() if len(g) == order)
        try:
            y = n[1] / (n[1] + 2 * n[2])
            d = [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
        except ZeroDivisionError:
            return [0, 0.5, 1, 1.5]
        fine = all(0 <= found <= k for k, found in enumerate(d, 1))
        return [0, *d] if fine else [0, 0.5, 1, 1.5]

    def deleted_interpolation(self):
        order = self.config.order
        weights, change = [0.5] * order, 1.0
        while change > 1e-8:
            taken, met = [0.0] * order, [0.0] * order
            for context, word in self.found:
                parts, p = [], 1 / self.vocab_size
                for size in range(len(context) + 1):
                    history = context[len(context) - size :]
                    others = sum(self.following[history].values()) - 1
                    if others:
                        q = (self.raw[*history, word] - 1) / others
                        mixed = weights[size] * q + (1 - weights[size]) * p
                        parts.append((size, weights[size] * q / mixed))
                        p = mixed
                reached = 1.0
                for size, share in reversed(parts):
                    met[size] += reached
                    taken[size] += reached * share
                    reached *= 1 - share
            new = [t / m if m else 0.0 for t, m in zip(taken, met, strict=True)]
            change = max(abs(a - b) for a, b in zip(new, weights, strict=True))
            weights = new
        return weights

    def p(self, context: tuple[int, ...], word: int) -> float:
        follow = self.following.get(context)
        below = self.p(context[1:], word) if context else 1 / self.vocab_size
        if not follow:
            return below
        n, total = follow.get(word, 0), sum(follow.values())
        if self.config.smoothing == "add_k":
            return (n + self.config.k) / (total + self.config.k * self.vocab_size)
        if self.config.smoothing == "jelinek_mercer":
            weight = self.weights[len(context)]
            return weight * n / total + (1 - weight) * below
        d = self.discount[len(context) + 1]
        freed = sum(d[min(c, 3)] for c in follow.values())
        return (n - d[min(n, 3)]) / total + freed / total * below

    def log_p(self, batch) -> list[float]:
        found = occurrences(batch, self.config.order)
        return [np.log(self.p(context, word)) for context, word in found]


def distinct_grams(batch, config, vocab_size):
    tuples, valid = grams(batch, config.order, vocab_size)
    return np.unique(np.asarray(tuples)[valid], axis=0, return_counts=True)


def fitted(config, train, vocab_size):
    return estimate(config, vocab_size, *distinct_grams(train, config, vocab_size))


def check(config: NgramConfig, tokenizer: str):
    """Compare every held-out target, one by one, and each distribution's sum."""
    train, held_out, vocab_size = corpus(tokenizer)
    params = fitted(config, train, vocab_size)
    task = config.task(Setting(vocab_size, SEQ_LEN))
    logits = np.asarray(jax.jit(task.logits)(params, held_out), np.float64)
    np.testing.assert_allclose(np.exp(logits).sum(-1), 1, rtol=1e-5)
    tokens, segments = held_out["tokens"], held_out["segments"]
    valid = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    found = np.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0][valid]
    expected = Textbook(config, train, vocab_size).log_p(held_out)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    _, sums = jax.jit(task.loss)(params, held_out, None)
    assert sums["loss"] == pytest.approx(-np.sum(expected), rel=1e-5)
    assert sums["tokens"] == len(expected)


def test_targets_of_weight_zero_are_not_counted_and_others_weigh_their_loss():
    train, _, vocab_size = corpus("word")
    weights = np.random.default_rng(0).integers(0, 2, train["tokens"].shape)
    weights = weights.astype(np.float32)
    made = counted(CONFIG, vocab_size, len(weights), len(weights))
    grams_Nn, valid_N = made(train | {"weights": weights}, jnp.int32(0))
    whole_Nn, all_N = made(train, jnp.int32(0))
    np.testing.assert_array_equal(grams_Nn, whole_Nn)
    np.testing.assert_array_equal(valid_N, all_N & (weights[:, 1:].ravel() > 0))
    # The weight of a target multiplies its loss.
    params, task = fitted(CONFIG, train, vocab_size), CONFIG.task(Setting(vocab_size, 0))

    loss = jax.jit(task.loss)

    def sums(weights):
        return loss(params, train | {"weights": weights}, None)[1]

    once = jax.grad(lambda w: sums(w)["loss"])(jnp.ones_like(weights))
    expected = Textbook(CONFIG, train, vocab_size).log_p(train)
    valid_BT = np.asarray(all_N).reshape(len(weights), -1)
    np.testing.assert_allclose(-once[:, 1:][valid_BT], expected, rtol=2e-5, atol=2e-5)
    assert sums(weights)["weight"] == np.sum(valid_N)


@pytest.mark.parametrize("order", [1, 3, 5])
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_probabilities_are_the_textbooks(smoothing, order):
    check(NgramConfig(order, smoothing), "word")


@pytest.mark.parametrize("tokenizer", LEAST_VOCAB_SIZE)
def test_over_any_tokenizer(tokenizer):
    check(NgramConfig(4, "kneser_ney"), tokenizer)


def test_a_bigram_is_the_baseline_of_the_data():
    train, held_out, vocab_size = corpus("bpe")
    counts = [
        bigram_counts(b["tokens"], b["segments"], vocab_size) for b in (train, held_out)
    ]
    config = [NgramConfig(2, "add_k", k) for k in (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)]
    losses = []
    for c in config:
        task, params = c.task(Setting(vocab_size, SEQ_LEN)), fitted(c, train, vocab_size)
        _, sums = jax.jit(task.loss)(params, held_out, None)
        losses.append(float(sums["loss"] / sums["tokens"]))
    assert min(losses) == pytest.approx(bigram_loss(*counts), rel=1e-5)


CONFIG = NgramConfig(3)


def program_of(strategy, degree, batch_size, num_steps, num_rows):
    vocab_size = corpus("bpe")[2]
    counting = ngram_counting(CONFIG, vocab_size, SEQ_LEN, batch_size, num_steps, num_rows)
    return counting_program(counting, strategy, data_mesh(degree))


def train_on(program, batch_size, num_steps):
    """Take steps as the loop does, with rows again from the first after the last."""
    rows, state = corpus("bpe")[0], program.init(jax.random.key(0))
    for step in range(num_steps):
        index = np.arange(step * batch_size, (step + 1) * batch_size)
        batch = {n: x[index % len(x)] for n, x in rows.items() if n != "row"}
        batch["row"] = np.arange(batch_size, dtype=np.int32)
        state, metrics = program.step(state, program.place(batch))
    return program.params(state), metrics


@pytest.mark.parametrize("degree", [1, 8])
@pytest.mark.parametrize("strategy", [n for n, row in STRATEGIES.items() if row.counts])
def test_the_model_has_the_same_bits_on_any_devices(strategy, degree):
    rows, held_out, vocab_size = corpus("bpe")
    num_rows, batch_size = len(rows["tokens"]), 16
    # Steps that go on into a second epoch, which counts for nothing.
    num_steps = 2 * num_rows // batch_size
    program = program_of(strategy, degree, batch_size, num_steps, num_rows)
    params, metrics = train_on(program, batch_size, num_steps)
    assert metrics["tokens"] == 0
    expected = fitted(CONFIG, rows, vocab_size)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    batch = {n: np.resize(x, (16, *x.shape[1:])) for n, x in held_out.items()}
    loss = jax.jit(CONFIG.task(Setting(vocab_size, SEQ_LEN)).loss)
    _, one = loss(params, batch, None)
    _, many = loss(params, place_rows(program.mesh, batch), None)
    assert many["loss"] == pytest.approx(float(one["loss"]), rel=1e-6)
    assert many["tokens"] == one["tokens"]


def test_a_gram_stays_in_its_segment():
    batch = {
        "tokens": jnp.array([[5, 6, 7, 8, 9, 0]]),
        "segments": jnp.array([[1, 1, 2, 2, 2, 0]]),
    }
    tuples, valid = grams(batch, 3, 10)
    wanted = [[10, 5, 6], [10, 10, 7], [10, 7, 8], [7, 8, 9], [10, 10, 0]]
    np.testing.assert_array_equal(np.asarray(tuples)[:4], wanted[:4])
    np.testing.assert_array_equal(valid, [True, False, True, True, False])
    tuples, valid = grams(batch | {"segments": jnp.ones((1, 6), int)}, 2, 10)
    np.testing.assert_array_equal(tuples, [[5, 6], [6, 7], [7, 8], [8, 9], [9, 0]])
    assert valid.all()


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_no_text_is_the_uniform_distribution(smoothing):
    for order in (1, 3):
        task = NgramConfig(order, smoothing).task(Setting(10, SEQ_LEN))
        batch = {"tokens": jnp.array([[1, 2, 3, 4]]), "segments": jnp.ones((1, 4), int)}
        logits = task.logits(task.init(jax.random.key(0)), batch)
        np.testing.assert_allclose(logits, -np.log(10), rtol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_decoding_equals_the_full_pass(order):
    train, _, vocab_size = corpus("word")
    config = NgramConfig(order)
    params, task = (
        fitted(config, train, vocab_size),
        config.task(Setting(vocab_size, SEQ_LEN)),
    )
    prompts = [train["tokens"][0, :n].tolist() for n in (1, 6, 3)]
    assert_greedy(task, params, prompts, 6)
