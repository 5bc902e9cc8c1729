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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.collectives import psum_in_one
from parallel.exchange.transforms import Exchange
from parallel.fragments import join, split
from parallel.mesh import batch_axes, batch_degree, place_rows
from parallel.program import (
    Batch,
    Key,
    Learner,
    Metrics,
    Params,
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
from parallel.replicas import EACH, ONCE, dealt, for_each, num_given, placed, spread

OUTER = {"parallel.strategy": ("diloco", "streaming_diloco")}
STREAMING = {"parallel.strategy": ("streaming_diloco",)}


@dataclass
class LocalConfig:
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


class Plan(NamedTuple):
    """When and how the replicas meet."""

    every: int
    outer: optax.GradientTransformation
    fragments: int = 1
    overlap: int = 0
    mix: float = 0.0
    first: int = 0

    def validate(self) -> None:
        if self.fragments > self.every:
            raise ValueError(
                f"parallel.local.fragments {self.fragments} do not fit in the "
                f"parallel.local.every {self.every} steps between meetings; give fewer"
            )
        if self.overlap >= self.every:
            raise ValueError(
                f"parallel.local.overlap {self.overlap} must be less than "
                f"parallel.local.every {self.every}, for a fragment arrives before it "
                "meets again"
            )


def nesterov(config: LocalConfig) -> optax.GradientTransformation:
    return optax.sgd(config.learning_rate, config.momentum or None, nesterov=True)


PLANS: dict[str, Callable[[LocalConfig], Plan]] = {
    "local_sgd": lambda c: Plan(c.every, optax.sgd(1.0)),
    "post_local_sgd": lambda c: Plan(c.every, optax.sgd(1.0), first=c.first),
    "diloco": lambda c: Plan(c.every, nesterov(c)),
    "streaming_diloco": lambda c: Plan(c.every, nesterov(c), c.fragments, c.overlap, c.mix),
}


class Fragment(NamedTuple):
    """What the replicas know of one part of the parameters (parallel/fragments.py)."""

    agreed: Params  # once: the parameters of the last meeting
    outer: optax.OptState  # once
    arriving: Params  # once: the outer gradient that waits for `overlap` steps
    tokens: jax.Array  # each: float32[], the weight of those since the last meeting
    comm: Any  # each: what the exchange keeps


class Untold(NamedTuple):
    """What one replica will tell the others when next a fragment meets."""

    loss: jax.Array  # float32[], summed over the tokens of the steps that were not skipped
    tokens: jax.Array  # float32[]
    skipped: jax.Array  # float32[], steps
    in_a_row: jax.Array  # float32[], skipped steps in a row, up to now


class Apart(NamedTuple):
    """What the replicas keep beside parameters and optimizers."""

    fragments: list[Fragment]
    untold: Untold  # each
    loss: jax.Array  # once: float32[], mean over all tokens, told at the last meeting


FRAGMENT = Fragment(agreed=ONCE, outer=ONCE, arriving=ONCE, tokens=EACH, comm=EACH)
# Before the first meeting: finite, and so high that each loss is better.
UNKNOWN_LOSS = 1e30


def local_program(
    learner: Learner, mesh: Mesh, accumulation: int, exchange: Exchange, plan: Plan
) -> Program:
    """Train replicas apart; `exchange` sums over them at a meeting."""
    num_replicas, axes = batch_degree(mesh), batch_axes(mesh)
    apart = Apart([FRAGMENT] * plan.fragments, untold=EACH, loss=ONCE)
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
        Fragment(
            agreed=own,
            outer=plan.outer.init(own),
            arriving=jax.tree.map(jnp.zeros_like, own) if plan.overlap else [],
            tokens=jnp.zeros(num_replicas),
            comm=for_each(exchange.init(own), num_replicas),
        )
        for own in split(state.params, plan.fragments)
    ]
    untold = Untold(*[jnp.zeros(num_replicas) for _ in Untold._fields])
    own = for_each((state.params, state.opt, state.scale), num_replicas)
    apart = Apart(fragments, untold, jnp.float32(UNKNOWN_LOSS))
    return TrainState(state.step, own[0], own[1], apart, own[2])


def regrouped(num_replicas: int, state: TrainState) -> TrainState:
    """Go on with another number of replicas, which all begin from the average of the old.

    What does not depend on their number stays: what they agreed on, the outer optimizer,
    what is on its way, and the sums of tokens and residuals.
    """
    _, _, apart, _ = state.comm
    fragments = [
        f._replace(
            tokens=jnp.full(num_replicas, f.tokens.sum() / num_replicas),
            comm=dealt(f.comm, num_replicas),
        )
        for f in apart.fragments
    ]
    untold = Untold(*[jnp.zeros(num_replicas) for _ in Untold._fields])
    own = for_each((state.params, state.opt, state.scale), num_replicas)
    apart = Apart(fragments, untold, apart.loss)
    return TrainState(state.step, own[0], own[1], apart, own[2])


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

    # Of a skipped step nothing was learnt.
    finite, untold = metrics["finite"], state.comm.untold
    tokens = jnp.where(finite, weight_of(own), 0.0)
    untold = Untold(
        loss=untold.loss + jnp.where(finite, own["loss"], 0.0),
        tokens=untold.tokens + tokens,
        skipped=untold.skipped + jnp.where(finite, 0.0, 1.0),
        in_a_row=jnp.where(finite, 0.0, untold.in_a_row + 1.0),
    )
    fragments = [f._replace(tokens=f.tokens + tokens) for f in state.comm.fragments]
    comm = state.comm._replace(fragments=fragments, untold=untold)
    return state._replace(comm=comm), metrics | own


def sum_gradients_before(first: int, axes: tuple[str, ...], step: jax.Array, sums):
    """Sum over replicas in the first steps of post-local SGD, which are not local yet."""
    if first == 0:
        return sums
    with jax.named_scope("warmup"):
        return jax.lax.cond(
            step < first, lambda sums: psum_in_one(sums, axes), lambda sums: sums, sums
        )


def meetings(
    state: TrainState,
    index: int,
    exchange: Exchange,
    plan: Plan,
    axes: tuple[str, ...],
    learner: Learner,
) -> tuple[TrainState, jax.Array]:
    """Let fragment `index` meet if it is its turn, and let its result arrive if due.

    Return also what the replicas told, float32[2, W]: the steps that each skipped since it
    last told, and those in a row; zeros without a meeting.
    """
    turn = (index + 1) * plan.every // plan.fragments  # the last one at the very end
    since = (state.step - turn) % plan.every
    key = jax.random.fold_in(learner.exchange_key(state.step), index)

    def meet(state: TrainState) -> tuple[TrainState, jax.Array]:
        fragment = state.comm.fragments[index]
        own = split(state.params, plan.fragments)[index]
        comm, tokens, news = tell(state.comm, fragment.tokens, axes)
        outer_grads, fragment = exchange_moves(own, fragment, exchange, tokens, key)
        state = state._replace(comm=comm)
        if plan.overlap:
            fragment = fragment._replace(arriving=outer_grads)
            return with_fragment(state, index, fragment), news
        return arrive(with_fragment(state, index, fragment), outer_grads), news

    def arrive(state: TrainState, outer_grads: Params) -> TrainState:
        fragment = state.comm.fragments[index]
        updates, outer = plan.outer.update(outer_grads, fragment.outer, fragment.agreed)
        agreed = optax.apply_updates(fragment.agreed, updates)
        own = split(state.params, plan.fragments)[index]
        mixed = jax.tree.map(lambda x, y: plan.mix * x + (1 - plan.mix) * y, own, agreed)
        params = join(state.params, plan.fragments, index, mixed)
        fragment = fragment._replace(agreed=agreed, outer=outer)
        return with_fragment(state._replace(params=params), index, fragment)

    nothing = jnp.zeros((2, jax.lax.axis_size(axes)))
    with jax.named_scope(f"once_in_{plan.every}_steps"):
        state, news = jax.lax.cond(since == 0, meet, lambda state: (state, nothing), state)
    if not plan.overlap:
        return state, news
    state = jax.lax.cond(
        (since == plan.overlap) & (state.step >= turn + plan.overlap),
        lambda state: arrive(state, state.comm.fragments[index].arriving),
        lambda state: state,
        state,
    )
    return state, news


def tell(
    comm: Apart, tokens: jax.Array, axes: tuple[str, ...]
) -> tuple[Apart, jax.Array, jax.Array]:
    """Sum `tokens` over replicas, and tell all replicas what each has to tell.

    Return the sum and float32[2, W], the skipped steps of each replica as in `meetings`.
    """
    untold, zero = comm.untold, jnp.float32(0)
    mine = jax.nn.one_hot(jax.lax.axis_index(axes), jax.lax.axis_size(axes))
    news = jnp.stack([untold.skipped * mine, untold.in_a_row * mine])
    sums = jnp.stack([tokens, untold.loss, untold.tokens])
    (tokens, loss, told), news = psum_in_one((sums, news), axes)
    loss = jnp.where(told > 0, loss / jnp.maximum(told, 1.0), comm.loss)
    untold = Untold(zero, zero, zero, untold.in_a_row)
    return comm._replace(untold=untold, loss=loss), tokens, news


def exchange_moves(
    own: Params, fragment: Fragment, exchange: Exchange, tokens: jax.Array, key: Key
) -> tuple[Params, Fragment]:
    """Return the mean move of the replicas, each weighted by its share of the tokens."""
    moves = jax.tree.map(lambda a, x: (a - x) * fragment.tokens, fragment.agreed, own)
    means, comm = exchange.update(
        moves, fragment.comm, fragment.agreed, weight=divisor(tokens), key=key
    )
    return means, fragment._replace(comm=comm, tokens=jnp.zeros_like(fragment.tokens))


def with_fragment(state: TrainState, index: int, fragment: Fragment) -> TrainState:
    fragments = list(state.comm.fragments)
    fragments[index] = fragment
    return state._replace(comm=state.comm._replace(fragments=fragments))


def consensus(tree):
    """Average floats over the replicas; integers (step counts) are the same on all."""

    def one(x: jax.Array) -> jax.Array:
        return jnp.mean(x, 0) if jnp.issubdtype(x.dtype, jnp.floating) else x[0]

    return jax.tree.map(one, tree)
