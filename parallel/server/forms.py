"""The state of a session in the form that is saved, and back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.program import Key, TrainState
from parallel.regroup import dealt, num_given
from parallel.server.config import MOST_NUMBERS, MOST_WORKERS
from parallel.server.desk import Desk, open_desk
from parallel.server.kinds import Parts
from parallel.server.parts import cut, join
from parallel.server.session import Session
from parallel.server.worker import Private

NOBODY = -1


class Forms:
    """The state of a session in the form that is saved, and back."""

    def __init__(self, parts: Parts, mesh: Mesh):
        self.parts, self.everywhere = parts, NamedSharding(mesh, P())
        self.whole = jax.eval_shape(parts.learner.initial_state, jax.random.key(0))
        init = parts.rules.optimizer.init
        own = parts.own_optimizer
        # What the shards' optimizer keeps, where each worker has the Learner's.
        self.outer = jax.eval_shape(init, self.whole.params) if own else ()
        each = jax.eval_shape(self.joined, parts.first_private(self.whole))
        num = parts.config.workers
        stacked = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((num, *x.shape), x.dtype), each
        )
        number = jax.ShapeDtypeStruct((), jnp.int32)
        most = MOST_WORKERS if parts.merging is None else MOST_NUMBERS
        comm = {
            "next": number,
            "missing": jax.ShapeDtypeStruct((most,), jnp.int32),
            "clocks": jax.ShapeDtypeStruct((MOST_WORKERS,), jnp.int32),
            "private": stacked,
        }
        if parts.merging is not None:
            comm |= {"updates": number, "outer": self.outer}
        self.saved = self.placed_like(self.whole._replace(comm=comm))

    def first(self, key: Key) -> TrainState:
        init = self.parts.learner.initial_state
        return jax.jit(init, out_shardings=self.everywhere)(key)

    def placed_like(self, tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.everywhere), tree
        )

    def joined(self, private: Private) -> Private:
        """Return the residuals as one tree, however many shards there are."""
        residual = private.residual and join(private.residual, self.whole.params)
        return private._replace(residual=residual)

    def put(self, tree: Any) -> Any:
        return jax.device_put(tree, self.everywhere)

    def begin(self, session: Session, state: TrainState) -> None:
        """Let a session begin from a saved state, which lies on the host.

        The state of another strategy has no position: that is the step.
        """
        outer, updates = (), int(state.step)
        if state.comm and self.parts.merging is not None:
            outer, updates = state.comm["outer"], int(state.comm["updates"])
        session.start(state, self.privates(state), self.desk(state), updates, outer)

    def portable(self, state: TrainState) -> TrainState:
        session: Session = state.comm
        params, opt, scale, outer, privates = session.kept(self.whole, self.outer)
        missing, clocks = session.desk.missing, session.desk.clocks
        num = self.parts.config.workers
        comm = {
            "next": np.int32(session.desk.next),
            "missing": padded(missing, self.saved.comm["missing"].size),
            "clocks": padded([clocks.get(w, NOBODY) for w in range(num)], MOST_WORKERS),
            "private": jax.tree.map(
                lambda *xs: np.stack(xs), *(self.joined(each) for each in privates)
            ),
        }
        if self.parts.merging is not None:
            comm |= {"updates": np.int32(session.updates), "outer": outer}
        found = TrainState(np.int32(state.step), params, opt, comm, scale)
        return jax.tree.map(
            lambda x, like: self.put(np.asarray(x, like.dtype)), found, self.saved
        )

    def desk(self, state: TrainState) -> Desk:
        """Return the position of a saved state; of another strategy, it is the step."""
        workers = range(self.parts.config.workers)
        if not state.comm:
            return open_desk(workers, int(state.step))
        missing = [n for n in state.comm["missing"].tolist() if n != NOBODY]
        desk = open_desk(workers, int(state.comm["next"]), missing)
        clocks = enumerate(state.comm["clocks"].tolist()[: len(workers)])
        return desk._replace(clocks={w: clock for w, clock in clocks if clock != NOBODY})

    def privates(self, state: TrainState) -> list[Private]:
        num = self.parts.config.workers
        first = jax.device_get(self.parts.first_private(state))
        if not state.comm or not jax.tree.leaves(first):
            return [first] * num
        private: Private = state.comm["private"]
        if num_given(private) != num:
            # Other workers: all begin with the mean of the optimizers and loss scales.
            same = jax.tree.map(lambda x: np.stack([x] * num), first)
            residual = jax.device_get(dealt({"residual": private.residual}, num))
            private = same._replace(**residual)

        def of(worker: int) -> Private:
            own = jax.tree.map(lambda x: x[worker], private)
            residual = own.residual and cut(own.residual, self.parts.config.shards)
            return Private(residual, own.opt, own.scale)

        return [of(worker) for worker in range(num)]


def padded(numbers: list[int], room: int) -> np.ndarray:
    found = np.full(room, NOBODY, np.int32)
    found[: len(numbers)] = numbers
    return found
