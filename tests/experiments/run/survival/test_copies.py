"""Copies of a state in the memory of another process, over sockets that damage them."""

import socket
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.processes.channel import frames, holder
from experiments.processes.channel.holder import KEPT
from experiments.run.survival import copies
from experiments.run.survival.copies import Copies, check_copies, packed, unpacked
from parallel.mesh import data_mesh
from parallel.program import TrainState


@pytest.fixture
def address():
    with holder.server("127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        yield server.server_address
        server.shutdown()


def state_of(value: float, mesh=None) -> TrainState:
    """A state with leaves that are whole, split, scalar, and of several types."""
    mesh = mesh or data_mesh(-1)
    size = mesh.size

    def put(x, spec):
        return jax.device_put(x, NamedSharding(mesh, spec))

    params = {
        "whole": put(jnp.full((3, 5), float(value)), P()),
        "split": put(jnp.arange(16.0 * size).reshape(2 * size, 8) * value, P("data")),
        "half": put(jnp.full((4, size), value, jnp.bfloat16), P(None, "data")),
    }
    step = put(jnp.int32(value), P())
    return TrainState(step, params, (put(jnp.bool_(value > 2), P()),), (), ())


def abstract_of(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def test_a_state_comes_back_with_its_bits_and_its_layout():
    state = state_of(3.25)
    payload = packed(state)
    # Of a whole leaf there is one part, whatever the number of devices.
    num_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert num_bytes < len(payload) < num_bytes + 2000
    found = unpacked(payload, abstract_of(state))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        assert a.sharding == b.sharding and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    fewer = abstract_of(state_of(3.25, data_mesh(2)))
    with pytest.raises(ValueError, match="has the parts of another layout"):
        unpacked(payload, fewer)


def test_a_frame_is_taken_whole_or_not_at_all():
    for place in range(0, 16 + 40, 5):  # the head, and the payload
        ours, theirs = socket.socketpair()
        with ours, theirs:
            frames.send(ours, b"x" * 40)
            sent = bytearray(theirs.recv(200))
            sent[place] ^= 4
            ours.sendall(sent)
            with pytest.raises(frames.DamagedFrame):
                frames.receive(theirs)
    ours, theirs = socket.socketpair()
    with theirs:
        frames.send(ours, b"y" * 9)
        ours.close()
        assert frames.receive(theirs) == b"y" * 9
        with pytest.raises(frames.DamagedFrame, match="0 of 16 bytes have arrived"):
            frames.receive(theirs)


def test_what_is_damaged_on_the_way_is_sent_again(address, capfd):
    left = [1, 1]  # how often a payload is damaged

    def changed(payload: bytes) -> bytes:
        return b"?" + payload[1:] if left and left.pop() else payload

    put = {"do": "put", "process": 0, "step": 4}
    frames.ask(address, put, b"state", changed)
    assert frames.ask(address, {"do": "get", "process": 0, "step": 4}) == (True, b"state")
    assert capfd.readouterr().err.count("a frame of 5 bytes is damaged; it is sent") == 2
    with pytest.raises(OSError):
        frames.ask(address, put, b"state", lambda payload: b"other")
    assert frames.ask(address, {"do": "get", "process": 0, "step": 4})[1] == b"state"


def test_a_holder_keeps_the_newest_and_gives_back_no_damaged_one():
    held = holder.Copies()
    for step in (2, 4, 6, 8):
        held.put(1, step, b"%d" % step)
    assert held.steps(1) == [4, 6, 8] and held.steps(0) == []
    held.put(1, 6, b"again")  # the run went back, and what came later is of another past
    assert held.steps(1) == [4, 6] and held.get(1, 6) == b"again"
    crc, _ = held.held[1][4]
    held.held[1][4] = crc, b"5"  # a bit of the memory has flipped
    assert held.get(1, 4) is None and held.get(1, 8) is None


def test_a_run_goes_on_from_the_newest_copy_that_all_have(address, monkeypatch):
    monkeypatch.setenv(holder.NAME, f'[5, [["{address[0]}", {address[1]}]]]')
    program = type("Program", (), {"abstract": abstract_of(state_of(1.0))})
    with Copies(0) as kept:
        assert [step for step in range(1, 12) if kept.due(step)] == [5, 10]
        for value in (5, 10, 15, 20):
            kept.keep(value, state_of(value))
        kept.sent.result()
        assert kept.newer(program, state_of(20)).step == 20 and kept.taken is None
        assert kept.newer(program, state_of(15)).params["whole"][0, 0] == 20.0
        assert kept.newer(program, None).step == 20 and kept.taken == 20
        # Another process has not come as far as this one, and has one that is not here.
        theirs = np.array([5, 10, 15], np.int32)
        gather = copies.multihost_utils.process_allgather
        monkeypatch.setattr(
            copies.multihost_utils, "process_allgather",
            lambda x: np.stack([x, theirs]) if np.ndim(x) else gather(x),
        )  # fmt: skip
        assert len(theirs) == KEPT and kept.newer(program, None).step == 15
        other = type("Program", (), {"abstract": abstract_of(state_of(1, data_mesh(2)))})
        assert kept.newer(other, state_of(1)).step == 1  # another layout
    monkeypatch.setenv(holder.NAME, "[0, []]")
    with Copies(0) as none:
        assert not any(map(none.due, range(9))) and none.newer(program, None) is None


def test_a_state_that_is_elsewhere_is_not_copied(monkeypatch):
    from configs import fields
    from configs.tiny import get_config

    config = fields.override(get_config(), {"parallel.strategy": "parameter_server"})
    check_copies(config)
    monkeypatch.setenv(holder.NAME, '[5, [["127.0.0.1", 1]]]')
    with pytest.raises(ValueError, match="--copies: under strategy 'parameter_server'"):
        check_copies(config)
