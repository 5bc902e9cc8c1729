"""Skew of shards against closed forms, and against chance."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from lm.data.rows.skew import divergence, imbalance, noise_floor, skew


def test_divergence_is_that_of_jensen_and_shannon():
    rng = np.random.default_rng(0)
    counts = rng.multinomial(1000, rng.dirichlet(np.ones(20), 2))  # equal weights
    assert divergence(counts) == pytest.approx(jensenshannon(*counts) ** 2, rel=1e-9)
    assert divergence(7 * counts) == pytest.approx(divergence(counts))
    assert divergence(np.diag([5, 5, 5])) == pytest.approx(np.log(3))  # nothing shared
    # A quarter of all in the other shard: the entropy of the shares.
    assert divergence(np.diag([3, 1])) == pytest.approx(
        -0.75 * np.log(0.75) + 0.25 * np.log(4)
    )
    assert divergence(np.outer([1, 2, 3], [4, 5])) == pytest.approx(0, abs=1e-12)


def test_shards_drawn_alike_are_at_their_noise_floor():
    rng = np.random.default_rng(0)
    for num_kinds, num_shards, total in ((6, 4, 4000), (50, 8, 40_000), (400, 2, 100_000)):
        shares = rng.dirichlet(np.full(num_kinds, 5.0))
        sizes = np.full(num_shards, total // num_shards)
        found = [skew(rng.multinomial(sizes[:, None].ravel(), shares)) for _ in range(200)]
        assert found[0].floor == (num_kinds - 1) * (num_shards - 1) / (2 * total)
        multiple = np.mean([x.multiple for x in found])
        # The G statistic of k degrees of freedom has the variance 2k.
        error = np.sqrt(2 / ((num_kinds - 1) * (num_shards - 1)) / 200)
        assert abs(multiple - 1) < 4 * error + 0.02
    apart = np.stack(
        [np.roll(x, i) for i, x in enumerate(np.tile(100_000 * shares, (4, 1)))]
    )
    assert skew(apart).multiple > 50


def test_kinds_and_shards_that_do_not_occur_count_for_nothing():
    counts = np.array([[3, 0, 1], [0, 0, 0], [1, 0, 3]])
    assert skew(counts) == skew(counts[[0, 2]][:, [0, 2]])
    empty = skew(np.zeros((2, 3)))
    assert empty[:2] == (0, 0) and np.isnan(empty.multiple)
    assert noise_floor([[5, 0], [5, 0]]) == 0
    with pytest.raises(ValueError, match="at least 0; the least is -1"):
        skew([[1, -1]])


def test_imbalance_in_closed_form():
    assert imbalance([4, 4, 4]) == (1, 0, 0)
    assert imbalance([0, 0, 8, 0]) == pytest.approx((4, np.sqrt(3), 3 / 4))
    sizes = np.random.default_rng(0).integers(1, 100, 9)
    pairs = np.abs(sizes[:, None] - sizes).mean() / (2 * sizes.mean())
    variation = sizes.std() / sizes.mean()
    assert imbalance(sizes) == pytest.approx((sizes.max() / sizes.mean(), variation, pairs))
    with pytest.raises(ValueError, match="3 shards hold nothing"):
        imbalance([0, 0, 0])
