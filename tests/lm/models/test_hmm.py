"""Hidden Markov models against enumeration of all paths, hmmlearn, and one device."""

import itertools

import hmmlearn.hmm
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.baum_welch import baum_welch
from lm.models.hmm import HmmConfig, sample_rows, viterbi
from lm.models.setting import Setting
from lm.optim import OptimConfig, optimizer
from lm.precision import PrecisionConfig, loss_scaling
from parallel.exchange.config import ExchangeConfig
from parallel.program import Learner
from tests.lm.models.greedy import assert_greedy
from tests.parallel.toy import VOCAB, assert_equal, batches, toy_program, train

S, V = 3, 5
EM, GRADIENT = (
    HmmConfig(S, training).task(Setting(V, 0)) for training in ("em", "gradient")
)
PARAMS = jax.tree.map(lambda x: 1.5 * x, EM.init(jax.random.key(3)))  # not normalised
# Three segments, one of a single token, padding in between and a row of it.
SEGMENTS = np.array([[1, 1, 1, 2, 0, 3, 3, 3], [1, 1, 1, 1, 1, 1, 1, 1], [0] * 8])
BATCH = {
    "tokens": np.random.default_rng(0).integers(0, V, SEGMENTS.shape),
    "segments": SEGMENTS,
    "row": np.arange(3),
}


def probabilities(params):
    """Return start_S, transition_SS, emission_SV, float64."""
    exps = [np.exp(np.asarray(params[n], np.float64)) for n in
            ("start", "transition", "emission")]  # fmt: skip
    return [e / e.sum(-1, keepdims=True) for e in exps]


def segments_of(batch):
    for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True):
        for segment, size in [(s, len(list(g))) for s, g in itertools.groupby(segments)]:
            if segment:
                yield tokens[:size]
            tokens = tokens[size:]


def paths(params, tokens):
    """Yield each path of states and its probability together with the tokens."""
    start, transition, emission = probabilities(params)
    for path in itertools.product(range(len(start)), repeat=len(tokens)):
        p = start[path[0]] * np.prod(emission[list(path), tokens])
        yield path, p * np.prod(transition[list(path[:-1]), list(path[1:])])


def logp(params, tokens):
    return np.log(sum(p for _, p in paths(params, tokens))) if len(tokens) else 0.0


def enumerated_counts(params, batch, weights=None):
    """Return the expected counts over all segments; each has a weight, without any 1."""
    counts = [np.zeros_like(x) for x in probabilities(params)]
    weights = iter(weights or [1] * BATCH["tokens"].size)
    for tokens in segments_of(batch):
        share = next(weights) / np.exp(logp(params, tokens))
        for path, p in paths(params, tokens):
            counts[0][path[0]] += p * share
            np.add.at(counts[1], (path[:-1], path[1:]), p * share)
            np.add.at(counts[2], (path, tokens), p * share)
    return dict(zip(("start", "transition", "emission"), counts, strict=True))


def test_loss_is_that_of_all_paths():
    loss_sum, sums = jax.jit(EM.loss)(PARAMS, BATCH, None)
    whole = sum(logp(PARAMS, tokens) for tokens in segments_of(BATCH))
    first = sum(logp(PARAMS, tokens[:1]) for tokens in segments_of(BATCH))
    assert loss_sum == pytest.approx(-whole, rel=1e-6)
    assert sums["loss"] == pytest.approx(first - whole, rel=1e-6)
    assert sums["tokens"] == 2 + 2 + 7  # all but the first of each segment
    same, _ = jax.jit(GRADIENT.loss)(PARAMS, BATCH, None)
    assert same == pytest.approx(float(loss_sum))


def test_the_gradient_is_minus_the_expected_counts():
    grads, _ = jax.jit(jax.grad(EM.loss, has_aux=True))(PARAMS, BATCH, None)
    expected = enumerated_counts(PARAMS, BATCH)
    for name, counts in expected.items():
        np.testing.assert_allclose(-grads[name], counts, rtol=2e-5, atol=1e-6)


def test_weights_of_segments_weigh_the_expected_counts():
    # The first row has the segments 1, 2 and 3, the second one more; none at padding.
    weights = np.array([[0.5] * 3 + [4, 9] + [0] * 3, [2.5] * 8, [7] * 8], np.float32)
    loss = jax.jit(jax.grad(EM.loss, has_aux=True))
    grads, sums = loss(PARAMS, BATCH | {"weights": weights}, None)
    expected = enumerated_counts(PARAMS, BATCH, [0.5, 4, 0, 2.5])
    for name, counts in expected.items():
        np.testing.assert_allclose(-grads[name], counts, rtol=2e-5, atol=1e-6)
    assert sums["weight"] == 2 * 0.5 + 7 * 2.5 and sums["tokens"] == 2 + 2 + 7


def test_through_the_normalisation_what_the_model_expects_is_taken_off():
    grads, _ = jax.jit(jax.grad(GRADIENT.loss, has_aux=True))(PARAMS, BATCH, None)
    expected = enumerated_counts(PARAMS, BATCH)
    for counts, p, name in zip(
        expected.values(), probabilities(PARAMS), expected, strict=True
    ):
        centred = counts - counts.sum(-1, keepdims=True) * p
        np.testing.assert_allclose(-grads[name], centred, rtol=2e-5, atol=1e-5)


def test_loss_and_logits_agree_and_no_future_token_changes_them():
    logits = np.asarray(jax.jit(EM.logits)(PARAMS, BATCH))
    np.testing.assert_allclose(np.exp(logits).sum(-1), 1, rtol=1e-6)
    targets = (SEGMENTS[:, 1:] == SEGMENTS[:, :-1]) & (SEGMENTS[:, 1:] > 0)
    picked = np.take_along_axis(logits, BATCH["tokens"][:, 1:, None], -1)[..., 0]
    _, sums = jax.jit(EM.loss)(PARAMS, BATCH, None)
    assert sums["loss"] == pytest.approx(-picked[targets].sum(), rel=1e-6)
    changed = BATCH | {"tokens": BATCH["tokens"].copy()}
    changed["tokens"][:, 5] += 1
    changed["tokens"] %= V
    other = np.asarray(jax.jit(EM.logits)(PARAMS, changed))
    np.testing.assert_array_equal(other[:, :5], logits[:, :5])
    assert (other[:2, 5] != logits[:2, 5]).any()


def test_viterbi_is_the_best_of_all_paths():
    states, best = jax.jit(viterbi)(PARAMS, BATCH)
    np.testing.assert_array_equal(np.asarray(states) == -1, SEGMENTS == 0)
    found = iter(segments_of(BATCH | {"tokens": np.asarray(states)}))
    total = 0.0
    for tokens, path in zip(segments_of(BATCH), found, strict=True):
        likeliest, p = max(paths(PARAMS, tokens), key=lambda pair: pair[1])
        assert tuple(path) == likeliest
        total += np.log(p)
    assert jnp.sum(best) == pytest.approx(total, rel=1e-6)


def hmmlearn_model(params, num_iterations=1):
    model = hmmlearn.hmm.CategoricalHMM(
        len(params["start"]), n_iter=num_iterations, tol=-np.inf, init_params=""
    )
    probs = probabilities(params)
    model.startprob_, model.transmat_, model.emissionprob_ = probs
    model.n_features = probs[2].shape[1]
    return model


def hmmlearn_em(params, batch, num_iterations):
    """Return parameters after Baum-Welch on all segments, and the last log likelihood."""
    sequences = list(segments_of(batch))
    model = hmmlearn_model(params, num_iterations)
    model.fit(np.concatenate(sequences)[:, None], [len(s) for s in sequences])
    fitted = model.startprob_, model.transmat_, model.emissionprob_
    return dict(zip(("start", "transition", "emission"), fitted, strict=True)), model


def learner(task, tx) -> Learner:
    precision = PrecisionConfig()
    return Learner(
        task, optax.with_extra_args_support(tx), loss_scaling(precision),
        lambda opt: jnp.float32(0), seed=0,
    )  # fmt: skip


STATES, ITERATIONS = 6, 3
TASK = HmmConfig(STATES).task(Setting(VOCAB, 0))
PLACES = [("shard_map", 1), *[(name, 8) for name in ("jit", "pmap", "shard_map", "fsdp")]]


@pytest.mark.parametrize("strategy, degree", PLACES)
def test_baum_welch_on_any_devices_is_hmmlearns(strategy, degree):
    """The same batch at each step: full-batch EM, with unequal tokens on each device."""
    batch = batches(1)[0]
    expected, _ = hmmlearn_em(TASK.init(jax.random.key(1)), batch, ITERATIONS)
    program = toy_program(strategy, learner(TASK, baum_welch(0.0, 0.0)), data=degree)
    _, params, losses = train(program, ITERATIONS, lambda num: [batch] * num)
    assert_equal(jax.tree.map(np.exp, params), expected, rtol=1e-4)
    assert losses[2] < losses[1] < losses[0]


def test_viterbi_and_likelihood_equal_hmmlearns():
    params, batch = TASK.init(jax.random.key(1)), batches(1)[0]
    model = hmmlearn_model(params)
    sequences = list(segments_of(batch))
    lengths = [len(s) for s in sequences]
    together = np.concatenate(sequences)[:, None]
    loss_sum, _ = jax.jit(TASK.loss)(params, batch, None)
    assert loss_sum == pytest.approx(-model.score(together, lengths), rel=1e-6)
    best, path = model.decode(together, lengths)
    states, logp_B = jax.jit(viterbi)(params, batch)
    np.testing.assert_array_equal(states[batch["segments"] > 0], path)
    assert jnp.sum(logp_B) == pytest.approx(best, rel=1e-6)


def test_stepwise_em_averages_the_counts():
    """Different batches; the statistics by the recursion of Cappe and Moulines."""
    smoothing, forgetting = 1e-3, 0.7
    tx = baum_welch(forgetting, smoothing)
    program = toy_program("shard_map", learner(TASK, tx), data=4, accumulation=2)
    _, params, _ = train(program, 4)
    expected, statistics = TASK.init(jax.random.key(1)), 0.0
    for k, batch in enumerate(batches(4)):
        grads, sums = jax.jit(jax.grad(TASK.loss, has_aux=True))(expected, batch, None)
        rate = (k + 1) ** -forgetting
        counts = -jax.flatten_util.ravel_pytree(grads)[0] / sums["tokens"]
        statistics = (1 - rate) * statistics + rate * counts
        unravel = jax.flatten_util.ravel_pytree(grads)[1]
        expected = jax.tree.map(
            lambda c: np.log((c + smoothing) / (c + smoothing).sum(-1, keepdims=True)),
            unravel(statistics),
        )
    assert_equal(params, expected, rtol=1e-4)


def test_codecs_and_late_counts_still_give_probabilities():
    exchange = ExchangeConfig(codec="int8", error_feedback="on", delay=1)
    maker = learner(TASK, baum_welch(0.5, 1e-4))
    program = toy_program("shard_map", maker, data=4, exchange=exchange)
    _, params, losses = train(program, 5)
    for x in jax.tree.leaves(params):
        np.testing.assert_allclose(np.exp(x).sum(-1), 1, rtol=1e-5)
    assert losses[-1] < losses[0]


def test_a_state_that_is_never_visited_keeps_its_distributions():
    tx = baum_welch(0.0, 0.0)
    params = {"x": jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]]))}
    grads = {"x": jnp.array([[-0.0, -0.0], [-3.0, -1.0]])}
    updates, _ = tx.update(grads, tx.init(params), params)
    new = jnp.exp(optax.apply_updates(params, updates)["x"])
    np.testing.assert_allclose(new, [[0.25, 0.75], [0.75, 0.25]], rtol=1e-6)


@pytest.mark.parametrize("name, task", [("baum_welch", TASK), ("adamw", None)])
def test_both_ways_of_training_learn_through_the_optimizers_of_the_config(name, task):
    task = task or HmmConfig(STATES, "gradient").task(Setting(VOCAB, 0))
    rate = 1.0 if name == "baum_welch" else 0.3
    config = OptimConfig(name=name, learning_rate=rate, schedule="constant")
    program = toy_program("shard_map", learner(task, optimizer(config, 10)), data=2)
    state, batch = program.init(jax.random.key(1)), program.place(batches(1)[0])
    losses = []
    for _ in range(25):
        state, metrics = program.step(state, batch)
        losses.append(float(metrics["loss"] / metrics["tokens"]))
    assert losses[-1] < 0.75 * losses[0]


def test_decoding_equals_the_full_pass():
    assert_greedy(EM, PARAMS, [[3, 1, 2], [4], [1, 1, 2, 4, 3]], 6)


def test_samples_follow_the_model():
    states, tokens = sample_rows(PARAMS, jax.random.key(0), 4000, 3)
    start, transition, emission = probabilities(PARAMS)
    second = start @ transition
    for t, p in enumerate([start, second, second @ transition]):
        # 4,000 draws: three standard deviations are under 0.024.
        found = np.bincount(states[:, t], minlength=S) / 4000
        np.testing.assert_allclose(found, p, atol=0.025)
        found = np.bincount(tokens[:, t], minlength=V) / 4000
        np.testing.assert_allclose(found, p @ emission, atol=0.025)
