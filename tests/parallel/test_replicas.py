"""What one replica keeps for itself stays its own, under shard_map and under pmap."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import fields
from parallel.config import ParallelConfig
from parallel.mesh import data_mesh, device_mesh, place_rows
from parallel.program import AXIS, split_rows
from parallel.replicas import pmap_program, shard_map_program
from tests.parallel.toy import batches, oracle, toy_learner

SGD = optax.sgd(0.1)


def remembering() -> optax.GradientTransformation:
    """Return the mean over replicas, and keep this replica's own sums and number."""

    def init(params):
        return {"own": jax.tree.map(jnp.zeros_like, params), "index": jnp.int32(-1)}

    def update(sums, comm, params=None, *, weight, key):
        comm = {"own": sums, "index": jax.lax.axis_index(AXIS)}
        means = jax.tree.map(lambda x: jax.lax.psum(x, AXIS) / weight, sums)
        return means, comm

    return optax.GradientTransformationExtraArgs(init, update)


@pytest.mark.parametrize("make", [shard_map_program, pmap_program])
def test_exchange_state_differs_from_replica_to_replica(make):
    program = make(toy_learner(SGD), data_mesh(4), exchange=remembering())
    state = program.init(jax.random.key(1))
    start = jax.device_get(state.params)
    for batch in batches(1):
        state, metrics = program.step(state, program.place(batch))
    np.testing.assert_array_equal(state.comm["index"], [0, 1, 2, 3])
    own = jax.device_get(state.comm["own"])
    assert not np.allclose(own["embedding"][0], own["embedding"][1])
    for moved, before, each in zip(
        jax.tree.leaves(jax.device_get(state.params)),
        jax.tree.leaves(start),
        jax.tree.leaves(own),
        strict=True,
    ):
        step = -0.1 * each.sum(0) / metrics["tokens"]
        np.testing.assert_allclose(moved - before, step, rtol=1e-3, atol=1e-6)
    expected, _ = oracle(SGD, 1)
    np.testing.assert_allclose(
        state.params["embedding"], expected["embedding"], rtol=1e-5, atol=1e-6
    )


def test_microbatches_leave_rows_on_their_device():
    rows = jnp.arange(16)
    mesh = data_mesh(4)
    placed = place_rows(mesh, {"row": np.arange(16)})["row"]
    split = jax.jit(lambda x: split_rows(x, 2))(placed)
    np.testing.assert_array_equal(split, rows.reshape(8, 2).T)
    compiled = jax.jit(lambda x: split_rows(x, 2)).lower(placed).compile()
    assert "all-" not in compiled.as_text() and "permute(" not in compiled.as_text()


@pytest.mark.parametrize(
    "degrees, words",
    [
        ({"data": 0}, "parallel.data 0.* 1"),
        ({"data": -2}, "parallel.data -2"),
        ({"data": 9}, "data 9.* 8 .*--devices"),
        ({"data": 3, "fsdp": 2}, "data 3, parallel.fsdp 2.* 6.* 8 "),
        ({"data": -1, "fsdp": 3}, "fsdp 3.* 8 "),
        ({"data": -1, "fsdp": -1}, "-1"),
    ],
)
def test_degrees_that_the_devices_do_not_allow(degrees, words):
    with pytest.raises(ValueError, match=words):
        device_mesh(degrees)


def test_the_rest_of_the_devices_and_a_part_of_them():
    assert dict(device_mesh({"data": -1, "fsdp": 4}).shape) == {"data": 2, "fsdp": 4}
    assert dict(device_mesh({"data": 2, "fsdp": -1}).shape) == {"data": 2, "fsdp": 4}
    assert dict(device_mesh({"data": 2}).shape) == {"data": 2}


@pytest.mark.parametrize(
    "changes, batch_size, words",
    [
        ({"strategy": "fdsp"}, 16, "jit, pmap, shard_map, zero1, zero1_whole, zero2, fsdp"),
        ({}, 30, "batch_size 30 .*data degree 4"),
        ({"accumulation": 8}, 16, "4 x accumulation 8 = 32"),
        ({"accumulation": 0}, 16, "accumulation is auto, .* give a number here"),
        ({"accumulation": -1}, 16, "accumulation .*-1.* 0"),
    ],
)
def test_bad_config_is_refused(changes, batch_size, words):
    config = ParallelConfig(**{"data": 4} | changes)
    with pytest.raises(ValueError, match=words):
        fields.check(config, "parallel.")
        config.validate(batch_size, config.mesh())
