"""What workers and shards are made of: of a server of gradients, and of islands' moves."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from parallel.exchange.config import ExchangeConfig
from parallel.program import Learner, Program, TrainState
from parallel.server.config import ServerConfig
from parallel.server.island import Island, inside
from parallel.server.merging import MergeConfig
from parallel.server.packing import wire_of
from parallel.server.shard import Arithmetic, Rules, arithmetic
from parallel.server.worker import Private, Spread, Worker, Works, trade


class Merging(NamedTuple):
    """How pushes of several steps are made and merged."""

    config: MergeConfig
    every: int  # H, the most steps of an island before it pushes


class Parts(NamedTuple):
    """What workers and shards are made of: the same here and in another process."""

    config: ServerConfig
    learner: Learner
    arithmetic: Arithmetic  # of shards
    new_worker: Callable[[int], Works]
    first_private: Callable[[TrainState], Private]
    own_optimizer: bool  # the optimizer of the Learner is with each worker
    merging: Merging | None = None  # None: a push is a gradient, of one number

    @property
    def rules(self) -> Rules:
        return self.arithmetic.rules


def gradient_parts(
    learner: Learner,
    mesh: Mesh,
    config: ServerConfig,
    exchange: ExchangeConfig,
    accumulation: int = 1,
) -> Parts:
    """Make those of a parameter server, each of whose workers has a mesh like this one."""
    wire, own = wire_of(exchange), config.optimizer == "worker"
    num_pieces = config.num_pieces if config.synchronous else 1
    # Of W means of a W-th of the rows the mean is taken, as of shares in an exchange.
    most = exchange.clip * num_pieces**0.5
    spread = Spread(learner, num_pieces, config.shards, accumulation, wire, own, most)
    # What a worker's optimizer made is added as it is.
    tx = optax.with_extra_args_support(optax.identity()) if own else learner.optimizer
    rate = unknown_rate if own else learner.learning_rate
    rules = Rules(tx, wire, config.compress_pulls, config.compensation, learner.seed, rate)
    new_worker = partial(Worker, trade(spread, mesh))
    first = spread.first_private
    return Parts(config, learner, arithmetic(rules), new_worker, first, own)


def island_parts(
    learner: Learner,
    inner: Program,
    config: ServerConfig,
    exchange: ExchangeConfig,
    merging: Merging,
    outer: optax.GradientTransformation,
) -> Parts:
    """Make those of islands, each of which trains by the Program `inner`.

    `outer` is the optimizer of the shards, which takes moves for gradients.
    """
    wire = wire_of(exchange)
    made = inside(learner, inner, config.shards, wire)
    tx = optax.with_extra_args_support(outer)
    rules = Rules(tx, wire, config.compress_pulls, 0.0, learner.seed, unknown_rate)
    new_worker, first = partial(Island, made), made.first_private
    return Parts(config, learner, arithmetic(rules), new_worker, first, True, merging)


def unknown_rate(opt: optax.OptState) -> jnp.ndarray:
    return jnp.float32(jnp.nan)
