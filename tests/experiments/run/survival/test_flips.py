"""A gradient that is flipped on one replica before the sum is named by its norm."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.run.survival.flips import Flip, flipping
from experiments.run.survival.replicas import Damage, check_norms, outlying
from parallel.readings import NORMS, read
from tests.parallel.toy import BATCH, SGD, batches, toy_learner, toy_program

REPLICAS = 4


def own_norms(learner, params, batch) -> list[float]:
    """Return the norm of each replica's mean gradient, one replica after the other."""
    key, norms = learner.step_key(jnp.int32(0)), []

    @jax.jit
    def norm(rows):
        grads, sums = jax.grad(learner.task.loss, has_aux=True)(params, rows, key)
        squares = sum(jnp.sum(x**2) for x in jax.tree.leaves(grads))
        return jnp.sqrt(squares) / sums["tokens"]

    for part in np.split(np.arange(BATCH), REPLICAS):
        norms.append(float(norm({name: x[part] for name, x in batch.items()})))
    return norms


def test_a_flipped_gradient_is_named_and_no_other_step_is_touched():
    learner = toy_learner(SGD, loss_scale=1.0)
    # Bit 30 of a small float32 makes it huge; in step 1 (the second), on replica 2.
    flip = Flip(learner.step_key(jnp.int32(1)), 2 * BATCH // REPLICAS, 3, 5, 30)
    damaged = learner._replace(task=flipping(learner.task, [flip]))
    program = toy_program("shard_map", damaged, data=REPLICAS, outlier=20.0)
    state = program.init(jax.random.key(1))
    expected = own_norms(learner, jax.device_get(state.params), batches(2)[0])
    found = []
    for batch in batches(2):
        state, metrics = program.step(state, program.place(batch))
        assert metrics[NORMS].shape == (REPLICAS,)
        found.append(read(metrics).norms)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)
    check_norms(1, found[0], 20.0)
    with pytest.raises(Damage, match=r"step 2: .* gradient of replica 2 \(.* stands out"):
        check_norms(2, found[1], 20.0)


def test_which_norms_stand_out():
    nan = math.nan
    for norms, expected in [
        ([1.0, 1.1, 0.9, 1.0], []),
        ([1.0, 11.0, 0.9, 1.0], [1]),
        ([1.0, nan, 0.9, 1.0], [1]),
        ([1.0, math.inf, 0.9, 30.0], [1, 3]),
        ([nan, nan, nan, 1.0], []),  # most are not finite: no replica stands out
        ([1.0, 11.0], [1]),
        ([], []),
    ]:
        assert outlying(norms, 10.0) == expected, norms
