"""Law 5 over the whole table: saved and restored is as if never stopped, to the bit."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from experiments.run.checkpoint import Checkpoints, KeepBest, Score, best_step
from lm.robust import RobustConfig, robust, robust_scaling
from parallel.exchange.config import ExchangeConfig
from parallel.local import LocalConfig
from parallel.program import begin
from parallel.readings import read
from parallel.server.config import ServerConfig
from parallel.strategies import STRATEGIES
from tests.parallel.toy import batches, toy_learner, toy_program

STEPS, STOP = 5, 3  # stops between two meetings of the local strategies
ADAM = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.01))
LOCAL = LocalConfig(every=2, fragments=2, overlap=1)
# With several islands, those that were out begin again from newer parameters.
ONE = {"async_diloco": ServerConfig(workers=1)}
EXCHANGES = {codec: {"codec": codec} for codec in ("int8", "dgc", "power_sgd")}
EXCHANGES["delay"] = {"delay": 2, "compensation": 0.1}
EXCHANGES["buckets"] = {"codec": "int8", "bucket_bytes": 8192}


def program(strategy: str, data: int = 4, learner=None, **exchange):
    return toy_program(
        strategy, learner or toy_learner(ADAM), data=data, local=LOCAL,
        exchange=ExchangeConfig(**exchange), server=ONE.get(strategy, ServerConfig()),
    )  # fmt: skip


def take(program, state, start: int, stop: int):
    def batch(number: int):
        return program.place(batches(STEPS)[number % STEPS])  # workers run ahead

    for number in range(start, stop):
        state, metrics = program.step(state, program.draw(batch, number))
    return state, metrics


def save_and_restore(folder, before, state, after):
    with Checkpoints(folder, 1, write=True) as checkpoints:
        checkpoints.save(STOP, before, state, None)
        checkpoints.wait()
        return checkpoints.restore(after)


def assert_begins_with_parameters(program):
    """The state before the first step is that of its parameters, wherever they are from."""
    first = program.init(jax.random.key(1))
    like = program.abstract_portable.params
    given = jax.tree.map(
        lambda x, like: jax.device_put(np.asarray(x), like.sharding),
        program.params(first), like,
    )  # fmt: skip
    began = program.adopt(begin(toy_learner(ADAM), program, given))
    jax.tree.map(
        np.testing.assert_array_equal,
        *(jax.device_get(program.portable(x)) for x in (began, first)),
    )


def assert_goes_on(folder, before):
    state, _ = take(before, before.init(jax.random.key(1)), 0, STOP)
    restored = save_and_restore(folder, before, state, before)
    structure = jax.tree.structure(before.abstract)
    assert jax.tree.structure(restored) == structure
    a, b = (
        jax.device_get(before.portable(take(before, each, STOP, STEPS)[0]))
        for each in (state, restored)
    )
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_begins_and_goes_on(tmp_path, strategy):
    chosen = program(strategy)
    assert_begins_with_parameters(chosen)
    assert_goes_on(tmp_path, chosen)


@pytest.mark.parametrize("name", EXCHANGES)
def test_every_exchange_goes_on(tmp_path, name):
    assert_goes_on(tmp_path, program("shard_map", **EXCHANGES[name]))


def test_a_compressed_meeting_goes_on(tmp_path):
    assert_goes_on(tmp_path, program("streaming_diloco", codec="int4"))


def test_what_is_usual_for_a_row_goes_on(tmp_path):
    config = RobustConfig("tukey", threshold=1.5, gain=0.3, settle=2)
    learner = toy_learner(ADAM)
    learner = learner._replace(
        task=robust(learner.task, config),
        scaling=robust_scaling(learner.scaling, config),
    )
    assert_goes_on(tmp_path, program("shard_map", learner=learner))


@pytest.mark.parametrize("strategy, exchange", [
    ("streaming_diloco", {}), ("shard_map", {"codec": "int8"}),
])  # fmt: skip
def test_another_strategy_and_degree_take_over(tmp_path, capsys, strategy, exchange):
    """What only this strategy knows goes to another degree, and is else left behind."""
    before = program(strategy, **exchange)
    state, _ = take(before, before.init(jax.random.key(1)), 0, STOP)
    params = jax.device_get(before.params(state))
    opt = jax.device_get(before.portable(state).opt)
    for number, (after, said) in enumerate(
        [
            (program("fsdp"), "it is not taken over"),
            (program(strategy, data=2, **exchange), "its sums stay"),
            (program("diloco", data=2), "it is not taken over"),
        ]
    ):
        state_after = save_and_restore(tmp_path / str(number), before, state, after)
        assert said in capsys.readouterr().err
        saved = jax.device_get(after.portable(state_after))
        if said == "its sums stay" and strategy == "shard_map":
            for old, new in zip(
                *(jax.tree.leaves(jax.device_get(s.comm)) for s in (state, state_after)),
                strict=True,
            ):
                np.testing.assert_allclose(new.sum(0), old.sum(0), 1e-5, 1e-7)
        jax.tree.map(np.testing.assert_array_equal, saved.params, params)
        jax.tree.map(np.testing.assert_array_equal, saved.opt, opt)
        assert int(state_after.step) == STOP
        _, metrics = take(after, state_after, STOP, STEPS)
        assert np.isfinite(read(metrics).values["loss"])


def test_layouts_over_other_axes_take_over(tmp_path):
    """Parameters and moments pass from three axes to one and to a split of layers."""
    hybrid = toy_program("hybrid", toy_learner(ADAM), data=2, fsdp=2, tensor=2)
    state, _ = take(hybrid, hybrid.init(jax.random.key(1)), 0, STOP)
    last, _ = take(hybrid, jax.tree.map(jax.numpy.copy, state), STOP, STEPS)
    expected = jax.device_get(last.params)
    before = hybrid
    for number, after in enumerate(
        [
            program("fsdp"),
            toy_program("tensor", toy_learner(ADAM), data=2, tensor=4),
            hybrid,
        ]
    ):
        kept = jax.device_get((state.params, state.opt))
        state = save_and_restore(tmp_path / str(number), before, state, after)
        restored = jax.device_get((state.params, state.opt))
        jax.tree.map(np.testing.assert_array_equal, restored, kept)
        before = after
    state, _ = take(before, state, STOP, STEPS)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), expected)


FEW, ALL = 8, 90  # rows of an evaluation
BEST = [  # the scores of steps 1, 2, ... -> the best step
    ([(2.0, FEW), (1.0, FEW), (3.0, FEW), (1.5, FEW)], 2),
    ([(2.0, FEW), (math.nan, FEW), (math.inf, FEW), (-math.inf, FEW), (3.0, FEW)], 1),
    ([(2.0, FEW), None, None, None], 1),
    ([(1.0, FEW), (1.0, FEW), (1.0, FEW)], 1),
    ([(math.nan, FEW), None, (math.nan, FEW)], None),
    ([(1.0, FEW), (2.0, ALL), (3.0, ALL)], 2),
    ([(1.0, FEW), (2.0, FEW), (math.nan, ALL)], 1),
    ([], None),
]


def test_the_best_checkpoint_is_finite_and_compared_with_like():
    for scores, best in BEST:
        checkpoints = [
            SimpleNamespace(step=step, metrics=score and Score(*score)._asdict())
            for step, score in enumerate(scores, 1)
        ]
        assert best_step(checkpoints) == best, scores
        kept = KeepBest().should_preserve(checkpoints, context=None)
        assert kept == [checkpoint.step == best for checkpoint in checkpoints]


def test_the_best_checkpoint_stays(tmp_path):
    before = program("jit", data=1)
    state = before.init(jax.random.key(1))
    for scores, best in BEST[1:2] + BEST[5:6]:
        folder = tmp_path / str(len(scores))
        with Checkpoints(folder, 1, write=True) as checkpoints:
            for step, score in enumerate(scores, 1):
                checkpoints.save(step, before, state, Score(*score))
        with Checkpoints(folder, 1, write=False) as checkpoints:  # as another process
            assert checkpoints.best_step() == best
            assert checkpoints.steps == [best, len(scores)]
