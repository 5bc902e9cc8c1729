"""Stragglers by hand: means, medians and steps."""

import math

import numpy as np
import pytest

from parallel.balance.stragglers import FACTOR, RECENT, STEPS, watched


def after(num_steps, *seconds, watch=None):
    for _ in range(num_steps):
        watch = watched(watch, seconds)
    return watch


def test_a_slow_worker_is_named_after_so_many_steps_and_not_before():
    slow = 1.0, 1.2, 0.9, 2.0
    assert not after(STEPS - 1, *slow).stragglers
    watch = after(STEPS, *slow)
    # The lower of the middle two of 0.9, 1, 1.2, 2.
    assert watch.stragglers == watch.worst == pytest.approx({3: 2.0})
    # It recovers: its mean needs some steps to fall below the factor.
    falls = np.log((FACTOR - 1) / (2 - 1)) / np.log(1 - RECENT)
    assert after(int(falls), 1, 1, 1, 1, watch=after(STEPS, 1, 1, 1, 2)).stragglers
    well = after(int(falls) + 1, 1, 1, 1, 1, watch=after(STEPS, 1, 1, 1, 2))
    assert not well.stragglers and well.worst == pytest.approx({3: 2.0})


def test_a_single_slow_step_and_a_slow_crowd_name_nobody():
    assert not after(2 * STEPS, 1.0, 1.0, 1.0, watch=after(1, 1.0, 1.0, 3.0)).worst
    assert not after(2 * STEPS, 5.0, 5.0, 5.0, 1.0).worst
    assert not after(2 * STEPS, 1.0, 0.99 * FACTOR).worst
    assert after(STEPS, 1.0, 1.01 * FACTOR).stragglers.keys() == {1}
    assert not after(STEPS, 3.0).worst


def test_workers_that_tell_nothing_in_a_step_keep_their_means():
    """A push tells of one worker, and rarely of a slow one; None is from a file."""
    nothing = (math.nan, math.nan, None)
    watch = after(1, *nothing)
    assert not watch.stragglers and np.isnan(watch.ratios_W).all()
    for told in ((1.0, None, None), (None, 1.2, None), (None, None, 4.0)):
        watch = after(1, *told, watch=watch)
    np.testing.assert_allclose(watch.means_W, [1.0, 1.2, 4.0])
    watch = after(STEPS - 2, 1.0, math.nan, math.nan, watch=watch)
    assert not watch.stragglers
    watch = after(1, *nothing, watch=watch)
    assert watch.stragglers == pytest.approx({2: 4.0 / 1.2})
