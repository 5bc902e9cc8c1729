"""What the loop says of steps that are skipped, and of text that is seen often."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from configs.base import Experiment
from experiments.run.check import check_alone, check_plateau
from experiments.run.log import Skipped, reason, skipped_apart
from experiments.run.loop import epochs, handle, warn_of_repetition, warn_of_spikes
from experiments.run.steps import row_order
from lm.data.config import DataConfig
from lm.data.rows.order import step_rows
from lm.data.rows.store import Rows
from lm.optim import OptimConfig
from parallel.config import ParallelConfig
from parallel.exchange.config import ExchangeConfig
from parallel.readings import Reading
from tests.parallel.workers import run_two


def run_of(num_rows: int, batch_size: int, **fields) -> SimpleNamespace:
    train = Rows(np.zeros((num_rows, 3)), np.ones((num_rows, 3)))
    config = Experiment(data=DataConfig(batch_size=batch_size), **fields)
    return SimpleNamespace(config=config, data=SimpleNamespace(train=train))


def test_text_that_is_seen_often_is_warned_of(capsys):
    for num_rows, steps, words in [
        (100, 40, []),  # 4 epochs of 10 rows a step
        (100, 41, ["sees its text 4.1 times", "Muennighoff et al. 2023"]),
        (9, 2, ["a batch of 10 rows is more than the 9 rows"]),
        (9, 9, ["sees its text 10 times", "more than the 9 rows"]),
    ]:
        run = run_of(num_rows, 10, steps=steps)
        assert epochs(run, steps) == pytest.approx(10 * steps / num_rows)
        warn_of_repetition(run)
        said = capsys.readouterr().err
        assert len(said.splitlines()) == sum("warning" in x for x in said.splitlines())
        assert all(word in said for word in words) and bool(said) == bool(words)


def test_an_exchange_that_keeps_spikes_is_warned_of(capsys):
    for strategy, exchange, warned in [
        ("shard_map", {"codec": "sign"}, True),
        ("shard_map", {"codec": "dgc"}, True),
        ("shard_map", {"codec": "sign", "clip": 1.0}, False),
        ("shard_map", {"codec": "int8", "error_feedback": "off"}, False),
        ("shard_map", {"codec": "majority_vote"}, False),
        ("diloco", {"codec": "int4"}, False),
    ]:
        parallel = ParallelConfig(strategy, exchange=ExchangeConfig(**exchange))
        warn_of_spikes(run_of(9, 3, parallel=parallel))
        said = capsys.readouterr().err
        assert ("parallel.exchange.clip=1.0 bounds it" in said) == warned, exchange


def test_skipping_ends_after_so_many_steps_in_a_row():
    said = []
    log = SimpleNamespace(say=said.append)
    run = run_of(20, 4, max_skipped=3)
    handle(None, run, log)
    for in_a_row in (1, 2):
        handle(Skipped(6 + in_a_row, reason(math.nan, math.nan), in_a_row), run, log)
    assert len(said) == 2 and "step 7: " in said[0] and "(the loss is nan)" in said[0]
    with pytest.raises(FloatingPointError) as ended:
        handle(Skipped(9, reason(3.25, math.inf), 3), run, log)
    for words in (
        "step 9: ",
        "the loss is 3.25, but the gradient's norm is inf",
        "This is skipped step 3 in a row, and max_skipped ends the run at 3",
        "the rows of step 7, the first",
    ):
        assert words in str(ended.value)
    # A parameter server may apply another number in this step; its rows are the ones.
    handle(Skipped(9, reason(math.nan, math.nan), 1, number=2), run, log)
    rows = step_rows(run.data.train, row_order(run.config), 2)
    assert f"Rows of number 2: {rows}" in said[-1]
    stopping = run_of(20, 4, on_nonfinite="stop")
    with pytest.raises(FloatingPointError, match="on_nonfinite=stop ends the run here"):
        handle(Skipped(9, reason(math.nan, 1.0), 1), stopping, log)


def test_all_processes_learn_of_a_skipped_step_at_the_meeting():
    """None ends, and leaves the others waiting, before all of them know."""
    first, second = (
        [line for line in output.splitlines() if line.startswith(("step", "ended"))]
        for output in run_two("apart_worker")
    )
    assert first[:2] == ["step 1 skipping [] told {}", "step 2 skipping [] told {}"]
    assert second[:2] == ["step 1 skipping [2] told {}", "step 2 skipping [2] told {}"]
    assert first[2] == "step 3 skipping [] told {2: (3, 3)}"
    assert second[2] == "step 3 skipping [2] told {2: (3, 3)}"
    assert first[3:] == second[3:] and "ended: step 3: " in first[3]
    assert "replica 2 skipped 3" in first[3] and len(first) == 4


def test_a_plateau_is_not_what_lies_between_two_meetings():
    optim = OptimConfig(schedule="plateau", window=10)
    config = Experiment(optim=optim, parallel=ParallelConfig("diloco"))
    with pytest.raises(ValueError, match="optim.window 10 is less than .*every 50"):
        check_plateau(config)
    config.parallel.local.every = 10
    check_plateau(config)
    config.parallel.local.alone = 5
    with pytest.raises(ValueError, match="window 10 .*alone 5 .*every 10"):
        check_plateau(config)
    check_alone(config)
    config.steps = 5
    with pytest.raises(ValueError, match="alone is 5, but .* 5 steps"):
        check_alone(config)


def test_replicas_apart_end_a_run_only_by_what_all_know():
    said = []
    log = SimpleNamespace(say=said.append)
    stopping = run_of(20, 4, on_nonfinite="stop")
    handle(skipped_apart(3, Reading({}, [2], {})), stopping, log)
    assert "step 3: " in said[0] and "on replica 2" in said[0] and "there" in said[0]
    at_meeting = skipped_apart(4, Reading({}, [], {2: (3, 1)}))
    with pytest.raises(FloatingPointError, match="replica 2 skipped 3, 1 of them in a row"):
        handle(at_meeting, stopping, log)
    handle(at_meeting, run_of(20, 4, max_skipped=3), log)
    with pytest.raises(FloatingPointError, match="skipped step 3 in a row"):
        at_meeting = skipped_apart(4, Reading({}, [], {0: (1, 1), 2: (3, 3)}))
        handle(at_meeting, run_of(20, 4, max_skipped=3), log)
