"""The simulator beside simpy; nothing is lost, and nothing beats a clairvoyant."""

import itertools
import math

import numpy as np
import pytest

from parallel.balance.policies import POLICIES
from parallel.balance.simulate import Trouble, end_of, makespan, simulate
from tests.parallel.balance import simpy_workers

NUM_PIECES, NUM_WORKERS = 7, 3
# From here on worker 1 is slow, or dead.
TROUBLES = [{}, {1: Trouble(6.0, 4.0)}, {1: Trouble(6.0, math.inf)}]


def worlds(seed, num_pieces=NUM_PIECES):
    """Yield (told seconds, actual seconds, troubles)."""
    rng = np.random.default_rng(seed)
    for troubles in TROUBLES:
        told_NM = rng.uniform(1, 10, (num_pieces, NUM_WORKERS))
        yield told_NM, told_NM * rng.lognormal(0, 0.3, told_NM.shape), troubles


def clairvoyant(actual_NM, troubles):
    """Return the end of the best assignment of all, which knows what will happen."""
    num_pieces, num_workers = actual_NM.shape
    every = np.array(list(itertools.product(range(num_workers), repeat=num_pieces)))
    taken = actual_NM[np.arange(num_pieces), every]
    ends = []
    for worker in range(num_workers):
        load = np.where(every == worker, taken, 0).sum(1)
        at, factor = troubles.get(worker, (math.inf, 1.0))
        late = np.maximum(load - at, 0)
        late[late > 0] *= factor
        ends.append(np.minimum(load, at) + late)
    return np.max(ends, 0).min()


def test_no_piece_is_lost_or_repeated_and_no_policy_beats_a_clairvoyant():
    for seed in range(2):
        for told_NM, actual_NM, troubles in worlds(seed):
            best = clairvoyant(actual_NM, troubles)
            for name, policy in POLICIES.items():
                ran = simulate(policy, told_NM, actual_NM, troubles)
                check(ran, actual_NM, troubles, name)
                assert makespan(ran) >= best * (1 - 1e-12), name


def check(ran, actual_NM, troubles, name):
    """Each piece counts once, takes its time, and a worker does one at a time."""
    counted = sorted(each.piece for each in ran if each.counts)
    assert counted == list(range(len(actual_NM))), name
    repeats = len(ran) - len(counted)
    died = any(math.isinf(trouble.factor) for trouble in troubles.values())
    assert name == "backup" or repeats <= died, name
    for worker in range(actual_NM.shape[1]):
        mine = sorted(
            (each for each in ran if each.worker == worker), key=lambda r: r.start
        )
        assert all(a.end <= b.start for a, b in itertools.pairwise(mine)), name
        at, factor = troubles.get(worker, (math.inf, 1.0))
        for each in mine:
            assert not math.isinf(factor) or each.end <= at
            took = each.end - each.start
            if each.end <= at and each.counts:
                assert took == pytest.approx(actual_NM[each.piece, worker])


def test_the_simulator_is_simpy():
    for seed in range(2):
        for told_NM, actual_NM, troubles in worlds(seed, num_pieces=14):
            for name, policy in POLICIES.items():
                ran = simulate(policy, told_NM, actual_NM, troubles)
                ours = {r.piece: (r.worker, r.start, r.end) for r in ran if r.counts}
                theirs = simpy_workers.ends(policy, told_NM, actual_NM, troubles)
                assert ours.keys() == theirs.keys()
                for piece, found in ours.items():
                    assert found == pytest.approx(theirs[piece]), (name, piece)


def test_a_piece_slows_down_where_its_worker_does():
    slow, dead = Trouble(10.0, 3.0), Trouble(10.0, math.inf)
    assert end_of(2.0, 5.0, slow) == 7.0
    assert end_of(8.0, 5.0, slow) == 10.0 + 3 * 3.0
    assert end_of(12.0, 5.0, slow) == 27.0
    assert end_of(5.0, 5.0, dead) == 10.0
    assert end_of(6.0, 5.0, dead) == math.inf
    assert end_of(6.0, 5.0, None) == 11.0


def test_a_policy_that_leaves_work_undone_is_an_error():
    ones = np.ones((3, 2))
    with pytest.raises(RuntimeError, match=r"leaves the pieces \[0, 1, 2\] undone"):
        simulate(lambda view: view.queues, ones, ones)
    both = {worker: Trouble(0.5, math.inf) for worker in range(2)}
    with pytest.raises(ValueError, match="all of the 2 workers are dead"):
        simulate(POLICIES["best"], ones, ones, both)
