"""Replicas that take unequal parts of a batch train as one device does."""

import collections
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from configs import fields
from parallel.config import ParallelConfig
from parallel.program import AXIS
from parallel.readings import read
from parallel.uneven import Dealer, moved_counts
from tests.parallel.test_strategies import assert_trains_as_one_device
from tests.parallel.toy import (
    SGD,
    assert_equal,
    batches,
    one_device,
    toy_learner,
    toy_program,
    weighted_batches,
)

SPEEDS = (1.0, 4.0, 0.1, 2.9)
SLOW = 2  # a replica


def test_unequal_rows_are_exact():
    """16 microbatches for 4 replicas: 2, 8, 0 and 6, of rows of unequal length.

    Under pmap; the law below is under shard_map, with numbers that change.
    """
    learner = toy_learner(SGD, dropout=0.2)
    config = {"data": 4, "accumulation": 4, "speeds": SPEEDS}
    assert ParallelConfig(strategy="pmap", **config).deal(4).counts_W == (2, 8, 0, 6)
    program = toy_program("pmap", learner, **config)
    assert_trains_as_one_device(program, weighted_batches, dropout=0.2)


SLEEP = 0.005  # seconds of a microbatch on that replica


def slowed(task, rounds):
    """Let microbatches take some time on one replica; count those of every replica."""

    def sleep(replica):
        rounds[int(replica)] += 1
        time.sleep(SLEEP if replica == SLOW else 0)
        return np.float32(0)

    def loss(params, batch, key):
        loss_sum, sums = task.loss(params, batch, key)
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return loss_sum + io_callback(sleep, shape, jax.lax.axis_index(AXIS)), sums

    return task._replace(loss=loss)


def test_microbatches_move_away_from_a_straggler(monkeypatch):
    """The losses stay, and the rounds of the loops are those of the policy, worked by hand.

    The dealer is told 4 seconds a microbatch for one replica and 1 for the others, whatever
    else runs on this machine. What it has measured is at least the sleep.
    """
    measured, measure, rounds = collections.defaultdict(list), Dealer.end, [0] * 4

    def end(dealer, replica, loss):
        replica = int(replica)
        measured[replica].append(float(measure(dealer, replica, loss)))
        return np.float32(dealer.counts_W[replica] * (4 if replica == SLOW else 1))

    monkeypatch.setattr(Dealer, "end", end)
    learner = toy_learner(SGD)
    learner = learner._replace(task=slowed(learner.task, rounds))
    config = {"data": 4, "accumulation": 4, "stragglers": "relieve"}
    program = toy_program("shard_map", learner, **config)
    state, losses, moved = program.init(jax.random.key(1)), [], []
    for number, batch in enumerate(batches(5)):
        state, metrics = program.step(state, program.place(batch))
        reading = read(metrics)
        losses.append(reading.values["loss"] / reading.values["tokens"])
        moved.append(reading.values["moved_microbatches"])
        taken = [4, 4, 4, 4] if number == 0 else [5, 5, 1, 5]
        assert rounds == taken and reading.seconds == [*taken[:2], 4 * taken[2], taken[3]]
        assert measured[SLOW][-1] >= taken[SLOW] * SLEEP
        rounds[:] = [0] * 4
    assert moved == [3, 0, 0, 0, 0]
    expected, expected_losses = one_device()
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_equal(jax.device_get(state.params), expected)


def test_the_dealer_learns_from_every_replica_once_a_step():
    dealer = Dealer((4, 4), moves=True)
    assert dealer.begin(1, None).tolist() == [4, 8]
    assert dealer.end(1, None) >= 0
    assert dealer.learn(0, [4.0, 40.0]) == dealer.learn(0, [4.0, 40.0]) == 3
    assert dealer.counts_W.tolist() == [7, 1]
    assert [dealer.begin(r, None).tolist() for r in range(2)] == [[0, 7], [7, 8]]
    assert dealer.learn(1, [7.0, 10.0]) == 0  # 10 s a piece: none can move for the better
    # The worker recovers, and half of what is new counts.
    dealer.learn(2, [7.0, 1.0])
    dealer.learn(3, [7.0, 1.0])
    assert dealer.counts_W[1] > 1 and dealer.counts_W.sum() == 8
    watching = Dealer((4, 4), moves=False)
    assert watching.learn(0, [4.0, 40.0]) == 0 and watching.counts_W.tolist() == [4, 4]


def test_each_replica_keeps_a_piece_and_small_differences_move_none():
    seconds = np.array([1.0, 1.0, 100.0])
    assert moved_counts(np.array([8, 8, 8]), seconds).tolist() == [12, 11, 1]
    nearly = np.array([1.0, 1.0, 1.2])
    assert moved_counts(np.array([8, 8, 8]), nearly).tolist() == [8, 8, 8]
    assert moved_counts(np.array([0, 12, 12]), np.ones(3)).sum() == 24


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"speeds": (1.0, 2.0)}, "parallel.speeds has 2 speeds, and there are 4 workers"),
        (
            {"speeds": (1.0, 2.0, 0.0, 1.0)},
            r"parallel.speeds\[2\] is 0.0; a speed is a number",
        ),
        ({"speeds": (1.0, -2.0, 1.0, 1.0)}, r"parallel.speeds\[1\] is -2.0"),
        (
            {"speeds": ("fast",) * 4},
            r"parallel.speeds\[0\] is 'fast'; a speed is a number",
        ),
        ({"speeds": (1.0,) * 4, "strategy": "zero1"}, "no effect .*'zero1'.*'shard_map'"),
        ({"stragglers": "shoot"}, "choose one of ignore, name, relieve"),
        ({"stragglers": "name", "strategy": "fsdp"}, "no effect .*'fsdp'"),
    ],
)
def test_bad_speeds_are_refused(changes, words):
    config = ParallelConfig(**{"data": 4, "strategy": "shard_map"} | changes)
    with pytest.raises(ValueError, match=words):
        fields.check(config, "parallel.")
        config.validate(16, config.mesh())


def test_a_deal_exchanges_once():
    config = ParallelConfig(strategy="shard_map", data=4, accumulation=4, speeds=SPEEDS)
    config.exchange.every = 2
    with pytest.raises(ValueError, match="exchange.every is 2, but with parallel.speeds"):
        config.validate(16, config.mesh())
