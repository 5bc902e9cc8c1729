"""Fewer meetings: replicas train by themselves and meet once in many steps.

Each replica has its own parameters and optimizer state. At a meeting the replicas exchange
how far each has moved since the last meeting, and an outer optimizer takes the mean move as
its gradient. One construction gives four strategies:

  local_sgd         the outer step is the average (McMahan et al. 2017; Stich 2019)
  post_local_sgd    local_sgd, after first steps that exchange gradients (Lin et al. 2020)
  diloco            the outer optimizer is Nesterov momentum (Douillard et al. 2023)
  streaming_diloco  fragments of the parameters, whole layers, meet one after the other,
                    and the result of a meeting arrives some steps later (Douillard et al.
                    2025). Here a meeting is part of a step, and the step ends after it: the
                    result is as late as in the paper, but no computation hides its journey

Moves go through the same Exchange as gradients do in other strategies, so they can be
compressed, with error feedback.

A run ends with a meeting, even between two others.

Only sums cross. A replica's move is weighted by the tokens that the replica has learnt from
since the last meeting. So with one plain SGD step between meetings, a meeting is the step
of the whole batch, even if the rows are uneven.

Between meetings nothing is exchanged, not even metrics: they are arrays with a value for
each replica, and a process can read those of its own (parallel/readings.py). At a meeting
each replica tells all others how many steps it skipped because they were not finite, and
its loss. So all processes learn of a skipped step at the same step, and the schedule
`plateau`, which must be at the same rate everywhere, sees the loss of the last meeting.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.collectives import psum_in_one
from parallel.exchange.transforms import Exchange
from parallel.meetings import (
    FRAGMENT,
    UNKNOWN_LOSS,
    Apart,
    Plan,
    Tally,
    counted,
    first_fragments,
    first_tally,
    meetings,
)
from parallel.mesh import batch_axes, batch_degree, place_rows
from parallel.program import (
    Batch,
    Key,
    Learner,
    Metrics,
    Program,
    TrainState,
    divided,
    divisor,
    gradients,
    total_weight,
    update,
    weight_of,
)
from parallel.readings import IN_A_ROW, SKIPPED
from parallel.regroup import dealt, num_given
from parallel.replicas import EACH, ONCE, for_each, placed, spread

OUTER = {"parallel.strategy": ("diloco", "streaming_diloco")}
STREAMING = {"parallel.strategy": ("streaming_diloco",)}


@dataclass
class LocalConfig:
    # what a replica does inside, on several devices: another strategy, which synchronises
    # them (parallel.slice is the number of replicas); none: a replica is one device
    inner: str = field(default="none", metadata={"decides": False})
    # H, steps that replicas train alone before they meet
    every: int = field(default=50, metadata={"at_least": 1})
    # steps at the start in which gradients are exchanged in every step
    first: int = field(
        default=100,
        metadata={"at_least": 0, "only": {"parallel.strategy": ("post_local_sgd",)}},
    )
    # learning rate of the outer optimizer, which acts at meetings
    learning_rate: float = field(default=0.7, metadata={"above": 0, "only": OUTER})
    # Nesterov momentum of the outer optimizer
    momentum: float = field(
        default=0.9, metadata={"at_least": 0, "below": 1, "only": OUTER}
    )
    # number of parts of the parameters; each part has meetings of its own
    fragments: int = field(default=4, metadata={"at_least": 1, "only": STREAMING})
    # steps between a meeting and the arrival of its result
    overlap: int = field(default=5, metadata={"at_least": 0, "only": STREAMING})
    # weight of a replica's own parameters when the result arrives; the result has the rest
    mix: float = field(default=0.5, metadata={"at_least": 0, "below": 1, "only": STREAMING})


def nesterov(config: LocalConfig) -> optax.GradientTransformation:
    return optax.sgd(config.learning_rate, config.momentum or None, nesterov=True)


PLANS: dict[str, Callable[[LocalConfig], Plan]] = {
    "local_sgd": lambda c: Plan(c.every, optax.sgd(1.0)),
    "post_local_sgd": lambda c: Plan(c.every, optax.sgd(1.0), first=c.first),
    "diloco": lambda c: Plan(c.every, nesterov(c)),
    "streaming_diloco": lambda c: Plan(c.every, nesterov(c), c.fragments, c.overlap, c.mix),
}


def local_program(
    learner: Learner, mesh: Mesh, accumulation: int, exchange: Exchange, plan: Plan
) -> Program:
    """Train replicas apart; `exchange` sums over them at a meeting."""
    num_replicas, axes = batch_degree(mesh), batch_axes(mesh)
    apart = Apart([FRAGMENT] * plan.fragments, tally=EACH, loss=ONCE)
    placement = TrainState(step=ONCE, params=EACH, opt=EACH, comm=apart, scale=EACH)

    begin_apart = partial(part, exchange, plan, num_replicas)

    def init(key: Key) -> TrainState:
        return begin_apart(learner.initial_state(key))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, tuple]:
        sum_early = partial(sum_gradients_before, plan.first, axes)
        state, metrics = own_step(
            learner, state, batch, accumulation, plan.first, sum_early
        )
        told = jnp.zeros((2, num_replicas))
        for index in range(plan.fragments):
            state, news = meetings(state, index, exchange, plan, axes, learner)
            told = jnp.maximum(told, news)
        return state, (metrics, {SKIPPED: told[0], IN_A_ROW: told[1]})

    apart_step = spread(step, mesh, placement, (EACH, ONCE))

    def joined_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        state, (own, common) = apart_step(state, batch)
        return state, own | common

    abstract = placed(init, mesh, placement)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    once = NamedSharding(mesh, P())
    plain = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=once),
        jax.eval_shape(learner.initial_state, jax.random.key(0)),
    )
    particular = (abstract.params, abstract.opt, abstract.comm, abstract.scale)
    average = jax.jit(consensus, out_shardings=once)
    begin = jax.jit(begin_apart, out_shardings=shardings, donate_argnums=0)
    regroup = jax.jit(partial(regrouped, num_replicas), out_shardings=shardings)

    def portable(state: TrainState) -> TrainState:
        params, opt, scale = average((state.params, state.opt, state.scale))
        own = (state.params, state.opt, state.comm, state.scale)
        return TrainState(state.step, params, opt, own, scale)

    def adopt(state: TrainState) -> TrainState:
        if not state.comm:
            return begin(state)
        if num_given(state.comm[0]) == num_replicas:
            return TrainState(state.step, *state.comm)
        return regroup(state)

    return Program(
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(joined_step, donate_argnums=0),
        params=lambda state: average(state.params),
        place=lambda batch: place_rows(mesh, batch),
        mesh=mesh,
        abstract=abstract,
        portable=portable,
        adopt=adopt,
        saved=plain._replace(comm=particular),
    )


def part(
    exchange: Exchange, plan: Plan, num_replicas: int, state: TrainState
) -> TrainState:
    """Give each replica a state of its own; they agree on what they begin from."""
    fragments = [
        fragment._replace(comm=for_each(fragment.comm, num_replicas))
        for fragment in first_fragments(state.params, exchange, plan)
    ]
    tally = first_tally(plan.fragments, (num_replicas,))
    own = for_each((state.params, state.opt, state.scale), num_replicas)
    apart = Apart(fragments, tally, jnp.float32(UNKNOWN_LOSS))
    return TrainState(state.step, own[0], own[1], apart, own[2])


def regrouped(num_replicas: int, state: TrainState) -> TrainState:
    """Go on with another number of replicas, which all begin from the average of the old.

    What does not depend on their number stays: what they agreed on, the outer optimizer,
    what is on its way, and the sums of tokens and residuals.
    """
    _, _, apart, _ = state.comm
    own = for_each((state.params, state.opt, state.scale), num_replicas)
    return TrainState(state.step, *own[:2], regrouped_apart(num_replicas, apart), own[2])


def regrouped_apart(num_replicas: int, apart: Apart) -> Apart:
    fragments = [f._replace(comm=dealt(f.comm, num_replicas)) for f in apart.fragments]
    tokens = [jnp.full(num_replicas, x.sum() / num_replicas) for x in apart.tally.tokens]
    untold = first_tally(0, (num_replicas,)).untold
    return Apart(fragments, Tally(tokens, untold), apart.loss)


def own_step(
    learner: Learner,
    state: TrainState,
    batch: Batch,
    accumulation: int,
    first: int,
    sum_early: Callable[[jax.Array, Any], Any],
) -> tuple[TrainState, Metrics]:
    """Take one step of this replica's optimizer; count its tokens and skipped steps.

    The metrics are of this replica's rows alone, so that those of all replicas add up.
    """
    key = learner.step_key(state.step)
    grads, own = gradients(
        learner.task.loss, state.params, batch, key, state.scale.value, accumulation
    )
    grads, sums = sum_early(state.step, (grads, own))
    means = divided(grads, total_weight(sums, state.scale))
    told = state.comm.loss
    if first:  # then the sums are those of all replicas
        mean_loss = sums["loss"] / divisor(weight_of(sums))
        told = jnp.where(state.step < first, mean_loss, told)
    state, metrics = update(learner, state, state.params, means, sums, told)

    tally = counted(state.comm.tally, metrics["finite"], own)
    return state._replace(comm=state.comm._replace(tally=tally)), metrics | own


def sum_gradients_before(first: int, axes: tuple[str, ...], step: jax.Array, sums):
    """Sum over replicas in the first steps of post-local SGD, which are not local yet."""
    if first == 0:
        return sums
    with jax.named_scope("warmup"):
        return jax.lax.cond(
            step < first, lambda sums: psum_in_one(sums, axes), lambda sums: sums, sums
        )


def consensus(tree):
    """Average floats over the replicas; integers (step counts) are the same on all."""

    def one(x: jax.Array) -> jax.Array:
        return jnp.mean(x, 0) if jnp.issubdtype(x.dtype, jnp.floating) else x[0]

    return jax.tree.map(one, tree)
