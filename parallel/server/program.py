"""A parameter server as a Program: workers pull, compute and push; shards update.

The training loop sees steps. A step is one update: of the pushes of all workers (sync), or
of one push (async, ssp). The Program is handed a function from numbers to rows and draws by
itself. The state that the loop holds is a handle: parameters and optimizer state lie on the
shards of a session, and `portable` and `params` read a consistent cut of them, all shards
after the same updates, while workers run on.

A push is a mean over the worker's tokens, with its weight. The shards add pushes up in the
order of the workers, not of their arrival, each weighted by its share of the tokens.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.exchange.config import ExchangeConfig
from parallel.program import (
    Key,
    Learner,
    Metrics,
    Params,
    Program,
    TrainState,
    divisor,
    itself,
    weight_of,
)
from parallel.readings import APPLIED
from parallel.regroup import dealt, num_given
from parallel.server.config import MOST_WORKERS, ServerConfig
from parallel.server.desk import Desk, give_back, hand, lag, may_start, open_desk, take
from parallel.server.packing import wire_of
from parallel.server.parts import check_shards, cut, join, part_of
from parallel.server.pool import LocalPool, Pool, Rows
from parallel.server.shard import (
    Arithmetic,
    Push,
    Rules,
    Shard,
    Snapshot,
    arithmetic,
    first_opt,
)
from parallel.server.worker import Order, Private, Spread, Told, Trade, Worker, trade

NOBODY = -1


class Line(NamedTuple):
    """A push that was applied: a line of schedule.jsonl."""

    update: int  # the number of the update, from 1
    worker: int
    number: int
    version: int  # updates that all shards had applied when the worker pulled
    whole: bool  # the worker pulled everything, for it had no copy
    lag: int  # pushes that the worker was ahead of the slowest when it pulled
    shards: int


class Parts(NamedTuple):
    """What workers and shards are made of: the same here and in another process."""

    config: ServerConfig
    spread: Spread
    rules: Rules
    trade: Trade  # of workers
    arithmetic: Arithmetic  # of shards


def build_parts(
    learner: Learner,
    mesh: Mesh,
    config: ServerConfig,
    exchange: ExchangeConfig,
    accumulation: int,
) -> Parts:
    wire, own = wire_of(exchange), config.optimizer == "worker"
    spread = Spread(
        learner,
        config.workers,
        config.shards,
        accumulation,
        wire,
        own,
        config.synchronous,
    )
    # What a worker's optimizer made is added as it is.
    tx = optax.with_extra_args_support(optax.identity()) if own else learner.optimizer
    rate = (lambda opt: jnp.float32(jnp.nan)) if own else learner.learning_rate
    rules = Rules(tx, wire, config.compress_pulls, config.compensation, learner.seed, rate)
    return Parts(config, spread, rules, trade(spread, mesh), arithmetic(rules))


class Session:
    """One run on a pool: who works on what, and what was applied."""

    def __init__(self, parts: Parts, pool: Pool):
        self.parts, self.pool = parts, pool
        self.config, self.learner = parts.config, parts.spread.learner
        self.workers = range(self.config.workers)
        self.orders: dict[int, Order] = {}
        self.lags: dict[int, int] = {}

    def start(self, state: TrainState, privates: list[Private], desk: Desk) -> None:
        """Begin from a whole state on the host."""
        self.desk, self.scale = desk, state.scale
        self.bare = set(self.workers)  # workers without a copy of the parameters
        step, snapshots = int(state.step), []
        for params in cut(state.params, self.config.shards):
            opt = part_of(state.opt, first_opt(self.parts.rules.optimizer, params))
            snapshots.append(Snapshot(step, step, params, jax.device_get(opt), {}, {}))
        self.pool.start(snapshots, privates)

    def launch(self, worker: int, number: int, version: int, rows: Rows) -> None:
        order = Order(worker, number, version, worker in self.bare, self.scale)
        self.bare.discard(worker)
        self.orders[worker] = order
        self.pool.launch(order, rows)

    def hand_out(self, version: int, rows: Rows) -> None:
        """Give work to all that may start, before the next push changes the parameters."""
        end = self.learner.num_steps or None
        for worker in self.workers:
            if may_start(self.desk, worker, self.config.bound, end):
                self.lags[worker] = lag(self.desk, worker)
                self.desk, number = hand(self.desk, worker)
                self.launch(worker, number, version, rows)

    def step(self, version: int, rows: Rows) -> Metrics:
        """Make update `version` + 1."""
        return (self.together if self.config.synchronous else self.alone)(version, rows)

    def together(self, version: int, rows: Rows) -> Metrics:
        """Let all workers push their rows of one number, and make one update of it."""
        number = self.desk.next
        for worker in self.workers:
            self.launch(worker, number, version, rows)
        told: dict[int, Told] = {}
        while len(told) < len(self.workers):
            worker, found = self.pool.finished()
            if found is None:
                self.bare.add(worker)
                self.launch(worker, number, version, rows)
            else:
                told[worker] = found
        self.desk = self.desk._replace(next=number + 1)
        return self.update(
            version + 1, [told[w] for w in self.workers], [*self.workers], 1.0
        )

    def alone(self, version: int, rows: Rows) -> Metrics:
        """Wait for the next push, and make an update of it."""
        while True:
            self.hand_out(version, rows)
            worker, told = self.pool.finished()
            if told is not None:
                break
            self.desk = give_back(self.desk, worker)
            self.bare.add(worker)
        factor = self.factor(version + 1, worker)
        metrics = self.update(version + 1, [told], [worker], factor)
        self.desk = take(self.desk, worker)
        return metrics | {"worker": np.int32(worker)}

    def factor(self, update: int, worker: int) -> float:
        """Return by what the update of this worker's push is multiplied."""
        staleness = update - 1 - self.orders[worker].version
        return 1 / max(1, staleness) if self.config.weigh == "inverse" else 1.0

    def update(
        self, update: int, told: list[Told], workers: list[int], factor: float
    ) -> Metrics:
        sums = jax.tree.map(lambda *xs: np.sum(xs, 0), *(each.sums for each in told))
        weights = [float(weight_of(each.sums)) for each in told]
        weight = float(divisor(weight_of(sums)))
        orders = [self.orders.pop(worker) for worker in workers]
        pushes = [
            Push(order.worker, order.number, own / weight if len(told) > 1 else 1.0)
            for order, own in zip(orders, weights, strict=True)
        ]
        # In the order of the shards.
        square = math.fsum(self.pool.merge(update, pushes))
        loss = float(sums["loss"]) / weight
        rate = self.pool.apply(update, square, factor, loss)
        finite = math.isfinite(square) and math.isfinite(loss)
        shown = self.learner.scaling.told(self.scale)
        scaled = self.learner.scaling.update(self.scale, np.bool_(finite), sums)
        self.scale = jax.device_get(scaled)
        rates = [each.learning_rate for each in told]
        lines = [self.line(update, order) for order in orders]
        return {
            **sums,
            **shown,
            "grad_norm": np.float32(math.sqrt(square) if square >= 0 else math.nan),
            "finite": np.bool_(finite),
            "learning_rate": np.float32(
                rates[0] if self.parts.spread.own_optimizer else rate
            ),
            "number": np.int32(orders[0].number),
            "staleness": np.int32(update - 1 - orders[0].version),
            "filled": np.float32(max(each.filled for each in told)),
            APPLIED: lines,
        }

    def line(self, update: int, order: Order) -> Line:
        behind = self.lags.get(order.worker, 0)
        _, number, version, whole, _ = order
        return Line(
            update, order.worker, number, version, whole, behind, self.config.shards
        )

    def params(self, like: Params) -> Params:
        return join([each.params for each in self.pool.snapshots()], like)

    def cut(self, like: TrainState) -> tuple[Params, Any, list[Private]]:
        """Return parameters, optimizer state and what workers keep, after one update."""
        snapshots, privates = self.pool.snapshots(), self.pool.privates()
        params = join([each.params for each in snapshots], like.params)
        if self.parts.spread.own_optimizer:
            return params, mean([each.opt for each in privates]), privates
        return params, join([each.opt for each in snapshots], like.opt), privates


def mean(trees: list[Any]) -> Any:
    """Average floats; integers (counts of steps) are those that are furthest."""

    def one(*xs: np.ndarray) -> np.ndarray:
        floats = np.issubdtype(np.asarray(xs[0]).dtype, np.floating)
        return np.mean(xs, 0, dtype=np.asarray(xs[0]).dtype) if floats else np.max(xs, 0)

    return jax.tree.map(one, *trees)


class Forms:
    """The state of a session in the form that is saved, and back."""

    def __init__(self, parts: Parts, mesh: Mesh):
        self.parts, self.everywhere = parts, NamedSharding(mesh, P())
        self.whole = jax.eval_shape(parts.spread.learner.initial_state, jax.random.key(0))
        private = parts.spread.first_private(self.whole.params, self.whole.opt)
        each = jax.eval_shape(self.joined, private)
        num = parts.config.workers
        stacked = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((num, *x.shape), x.dtype), each
        )
        room = jax.ShapeDtypeStruct((MOST_WORKERS,), jnp.int32)
        comm = {
            "next": jax.ShapeDtypeStruct((), jnp.int32),
            "missing": room,
            "clocks": room,
            "private": stacked,
        }
        self.saved = self.placed_like(self.whole._replace(comm=comm))

    def first(self, key: Key) -> TrainState:
        init = self.parts.spread.learner.initial_state
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

    def portable(self, state: TrainState) -> TrainState:
        session: Session = state.comm
        params, opt, privates = session.cut(self.whole)
        missing, clocks = session.desk.missing, session.desk.clocks
        comm = {
            "next": np.int32(session.desk.next),
            "missing": padded(missing),
            "clocks": padded([clocks[worker] for worker in session.workers]),
            "private": jax.tree.map(
                lambda *xs: np.stack(xs), *(self.joined(each) for each in privates)
            ),
        }
        found = TrainState(np.int32(state.step), params, opt, comm, session.scale)
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
        clocks = state.comm["clocks"].tolist()
        return desk._replace(clocks={w: max(clocks[w], 0) for w in workers})

    def privates(self, state: TrainState) -> list[Private]:
        spread, num = self.parts.spread, self.parts.config.workers
        first = jax.device_get(spread.first_private(state.params, state.opt))
        if not state.comm or not jax.tree.leaves(first):
            return [first] * num
        private = state.comm["private"]
        if num_given(private) != num:
            private = jax.device_get(dealt(private, num))
        return [
            first._replace(
                residual=first.residual
                and cut(
                    jax.tree.map(lambda x, w=w: x[w], private.residual), spread.num_shards
                ),
                opt=jax.tree.map(lambda x, w=w: x[w], private.opt),
            )
            for w in range(num)
        ]


def padded(numbers: list[int]) -> np.ndarray:
    room = np.full(MOST_WORKERS, NOBODY, np.int32)
    room[: len(numbers)] = numbers
    return room


def server_program(
    learner: Learner,
    mesh: Mesh,
    config: ServerConfig,
    exchange: ExchangeConfig,
    accumulation: int = 1,
    new_pool: Callable[[Parts], Pool] | None = None,
) -> Program:
    """Train through a parameter server; each worker has a mesh like this one.

    `new_pool` makes the pool of a session; None: workers and shards are in this process.
    Raises ValueError if there are more shards than arrays of parameters.
    """
    parts = build_parts(learner, mesh, config, exchange, accumulation)
    forms, new_pool = Forms(parts, mesh), new_pool or local_pool
    check_shards(forms.whole.params, config.shards)
    sessions: list[Session] = []

    def begin(state: TrainState) -> TrainState:
        session, state = Session(parts, new_pool(parts)), jax.device_get(state)
        session.start(state, forms.privates(state), forms.desk(state))
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
        workers=config.workers,
    )


def local_pool(parts: Parts) -> LocalPool:
    workers = [Worker(parts.trade, w) for w in range(parts.config.workers)]
    seed = parts.spread.learner.seed
    return LocalPool(parts.config, seed, workers, partial(Shard, parts.arithmetic))
