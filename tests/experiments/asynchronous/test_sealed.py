"""No damaged array passes between workers and shards, and what it was for is done again."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.asynchronous.bodies import ShardProcess, WorkerProcess
from experiments.asynchronous.pool import RayPool
from experiments.asynchronous.sealed import opened, sealed
from experiments.run.survival.replicas import Damage
from parallel.server.shard import Pulled, Push
from parallel.server.worker import Order


def tree():
    payload = {"a": np.arange(6, dtype=np.float32), "b": (jnp.ones(3, jnp.bfloat16),)}
    return Pulled(False, payload, 7)


def flipped(given, leaf: int):
    """Return what arrives when a bit of a leaf is flipped on the way."""
    leaves, structure = jax.tree.flatten(given.value)
    raw = bytearray(np.asarray(leaves[leaf]).tobytes())
    raw[-1] ^= 1
    as_it_was = np.asarray(leaves[leaf])
    leaves[leaf] = np.frombuffer(bytes(raw), as_it_was.dtype).reshape(as_it_was.shape)
    return given._replace(value=structure.unflatten(leaves))


def test_what_is_flipped_is_not_opened():
    given = sealed(tree())
    assert opened(given, "it") is given.value
    assert opened(sealed(None), "a shard that has nothing new") is None
    for leaf in range(4):  # the flag, both arrays, the version
        with pytest.raises(Damage, match="the push of worker 1 is damaged: its CRC-32C is"):
            opened(flipped(given, leaf), "the push of worker 1")


def test_neither_a_worker_nor_a_shard_computes_with_damage():
    taken: list = []
    shard = ShardProcess.__new__(ShardProcess)
    shard.shard = SimpleNamespace(merge=lambda *given: taken.append(given))
    pushes = [Push(0, 3, 0.5), Push(1, 3, 0.5)]
    with pytest.raises(Damage, match="the push of worker 1 is damaged"):
        shard.merge(1, pushes, sealed(tree()), flipped(sealed(tree()), 1))
    worker = WorkerProcess.__new__(WorkerProcess)
    worker.worker = SimpleNamespace(compute=lambda *given: taken.append(given))
    order = Order(1, (3,), 0, False, None)
    for private, pulled, what in [
        (flipped(sealed(tree()), 1), sealed(tree()), "what worker 1 kept"),
        (sealed(tree()), flipped(sealed(tree()), 2), "what shard 0 sent to worker 1"),
    ]:
        with pytest.raises(Damage, match=what):
            worker.compute(order, private, pulled)
    assert not taken


def test_a_shard_that_was_sent_damage_does_it_again(capfd):
    """Answers of this Ray are values, or errors that `get` raises."""

    def get(answer):
        if isinstance(answer, Exception):
            raise answer
        return answer

    done: list = []

    class NewShard:
        def __getattr__(self, name):
            return SimpleNamespace(remote=lambda *given: done.append(name) or len(done))

    kinds = ("RayActorError", "ObjectLostError", "WorkerCrashedError")
    errors = SimpleNamespace(**{name: type(name, (Exception,), {}) for name in kinds})
    pool = RayPool.__new__(RayPool)
    pool.ray = SimpleNamespace(get=get, exceptions=errors)
    pool.deaths, pool.shards, pool.new_shard = 0, [None], lambda index: NewShard()
    pool.log = [("merge", (1,), ()), ("apply", (1,), ()), ("merge", (2,), ())]
    assert pool.answers([Damage("the push of worker 0 is damaged")]) == [3]
    assert done == ["merge", "apply", "merge"] and pool.deaths == 1
    assert "server shard 0 got damaged bytes; another process" in capfd.readouterr().err
    pool.private = [sealed(tree()), flipped(sealed(tree()), 1)]
    with pytest.raises(Damage, match="what worker 1 kept is damaged"):
        pool.privates()
    with pytest.raises(KeyError):  # what is neither death nor damage ends the run
        pool.answers([KeyError("a")])
