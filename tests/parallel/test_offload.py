"""The optimizer's state in the host's memory: the same bits, in another place."""

import jax
import numpy as np
import pytest

from parallel.offload import HOST, check_kinds
from tests.parallel.toy import SGD, batches, sgd_program, toy_learner, toy_program, train


def test_offloaded_moments_change_no_bit_and_are_saved_from_the_devices():
    program = toy_program("zero1", toy_learner(SGD), data=8, offload="optimizer")
    state, params, losses = train(program)
    expected, expected_params, expected_losses = train(sgd_program("zero1", 8))
    assert losses == expected_losses
    jax.tree.map(np.testing.assert_array_equal, params, expected_params)
    jax.tree.map(
        np.testing.assert_array_equal, *map(jax.device_get, (state.opt, expected.opt))
    )
    moments = [x for x in jax.tree.leaves(state.opt) if x.ndim]
    assert moments and {x.sharding.memory_kind for x in moments} == {HOST}
    assert program.abstract.opt == jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state.opt
    )

    saved = program.portable(state)
    assert HOST not in {x.sharding.memory_kind for x in jax.tree.leaves(saved)}
    assert program.abstract_portable.opt == sgd_program("zero1", 8).abstract.opt
    batch = program.place(batches(1)[0])
    again, _ = program.step(program.adopt(saved), batch)
    onward, _ = sgd_program("zero1", 8).step(expected, batch)
    jax.tree.map(
        np.testing.assert_array_equal, *map(jax.device_get, (again.params, onward.params))
    )


def test_a_device_that_cannot_reach_the_hosts_memory_is_refused():
    with pytest.raises(ValueError, match="pinned_host, and the device old has device, x"):
        check_kinds("old", ["device", "x"])
