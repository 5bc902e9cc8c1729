"""A parameter server as a Program: workers pull, compute and push; shards update.

The training loop sees the steps of a session (`new_session`). The Program is handed a
function from numbers to rows and draws by itself. The state that the loop holds is a
handle: parameters and optimizer state lie on the shards of a session, and `portable` and
`params` read a consistent cut of them, all shards after the same updates, while workers run
on.

A push is a mean over the tokens of its rows, with its weight. The shards add pushes up in
the order of these rows (islands: of the workers), not of their arrival, each weighted by
its share of the tokens.
"""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from parallel.program import Key, Metrics, Program, TrainState, itself
from parallel.server.asynchronous import Asynchronous
from parallel.server.forms import Forms
from parallel.server.islands import Islands
from parallel.server.kinds import Parts
from parallel.server.parts import check_shards
from parallel.server.pool import LocalPool, Pool
from parallel.server.session import Session
from parallel.server.shard import Shard
from parallel.server.synchronous import Synchronous
from parallel.server.worker import Rows


def server_program(
    parts: Parts, mesh: Mesh, new_pool: Callable[[Parts], Pool] | None = None
) -> Program:
    """Train through a parameter server; each worker has a mesh like this one.

    `new_pool` makes the pool of a session; None: workers and shards are in this process.
    Raises ValueError if there are more shards than arrays of parameters.
    """
    forms, new_pool = Forms(parts, mesh), new_pool or local_pool
    check_shards(forms.whole.params, parts.config.shards)
    sessions: list[Session] = []

    def begin(state: TrainState) -> TrainState:
        session, state = new_session(parts, new_pool(parts)), jax.device_get(state)
        forms.begin(session, state)
        sessions.append(session)
        return TrainState(np.int32(state.step), (), (), session, session.scale)

    def init(key: Key) -> TrainState:
        return begin(forms.first(key))

    def step(state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
        session: Session = state.comm
        metrics = session.step(int(state.step), rows)
        return state._replace(step=state.step + np.int32(1), scale=session.scale), metrics

    def close() -> None:
        for session in sessions:
            session.pool.close()

    handle = TrainState(forms.saved.step, (), (), forms.saved.step, forms.saved.scale)
    return Program(
        init=init,
        step=step,
        params=lambda state: forms.put(state.comm.params(forms.whole.params)),
        place=lambda rows: rows,
        mesh=mesh,
        abstract=handle,
        portable=forms.portable,
        adopt=begin,
        saved=forms.saved,
        draw=itself,
        close=close,
        workers=parts.config.workers,
    )


def new_session(parts: Parts, pool: Pool) -> Session:
    if parts.merging is not None:
        return Islands(parts, pool)
    kind = Synchronous if parts.config.synchronous else Asynchronous
    return kind(parts, pool)


def local_pool(parts: Parts) -> LocalPool:
    workers = [parts.new_worker(w) for w in range(parts.config.workers)]
    seed = parts.learner.seed
    return LocalPool(parts.config, seed, workers, partial(Shard, parts.arithmetic))
