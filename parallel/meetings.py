"""Meetings of replicas that train apart: what each of them keeps, and what they exchange.

parallel/local.py makes a Program of it for replicas of one device, and
parallel/islands/program.py for replicas of several.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from parallel.collectives import psum_in_one
from parallel.exchange.algorithms import send
from parallel.exchange.transforms import Exchange
from parallel.forms.fragments import join, split
from parallel.program import (
    Key,
    Learner,
    Metrics,
    Params,
    TrainState,
    divisor,
    weight_of,
)
from parallel.readings import IN_A_ROW, SKIPPED
from parallel.replicas import EACH, ONCE


class Plan(NamedTuple):
    """When and how the replicas meet."""

    every: int
    outer: optax.GradientTransformation
    fragments: int = 1
    overlap: int = 0
    mix: float = 0.0
    first: int = 0  # steps at the start, in which gradients are exchanged in every step
    alone: int = 0  # steps at the start; then all take the first replica's parameters
    last: int = 0  # the step at which a run ends, and all meet once more; 0: none

    def turn(self, index: int) -> int:
        """Return the step of the first meeting of fragment `index`."""
        own = (index + 1) * self.every // self.fragments  # the last one at the very end
        return self.alone + own

    def meets(self, index: int, step: Any) -> Any:
        """Tell whether fragment `index` meets after so many steps."""
        in_turn = (step - self.turn(index)) % self.every == 0
        due = in_turn & (step > self.alone) | (step == self.last)
        return due & (step > self.first)

    def num_meetings(self, index: int, steps: int) -> int:
        """Return how often fragment `index` meets in so many steps."""
        return sum(bool(self.meets(index, step)) for step in range(1, steps + 1))

    def arrives(self, index: int, step: Any) -> Any:
        """Tell whether the result of a meeting of fragment `index` arrives then."""
        first = self.turn(index) + self.overlap
        in_turn = ((step - first) % self.every == 0) & (step >= first)
        return in_turn | (step == self.last)

    @property
    def together(self) -> int:
        """The steps at the start after which the replicas begin to train apart."""
        return self.alone or self.first

    def waits(self, index: int, step: int) -> bool:
        """Tell whether a result of fragment `index` waits when all meet at the end.

        What it was made of must not be in the moves of the last meeting once more.
        """
        before = range(max(step - self.overlap, 1), step)
        return step == self.last and any(self.meets(index, each) for each in before)

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


class Fragment(NamedTuple):
    """What the replicas know of one fragment (parallel/forms/fragments.py)."""

    agreed: Params  # once: the parameters of the last meeting
    outer: optax.OptState  # once
    arriving: Params  # once: the outer gradient that waits for `overlap` steps
    comm: Any  # each: what the exchange keeps


class Untold(NamedTuple):
    """What one replica will tell the others when next a fragment meets."""

    loss: jax.Array  # float32[], summed over the tokens of the steps that were not skipped
    tokens: jax.Array  # float32[], their weight
    skipped: jax.Array  # float32[], steps
    in_a_row: jax.Array  # float32[], skipped steps in a row, up to now


class Tally(NamedTuple):
    """What one replica counts while it trains by itself."""

    # Of each fragment: float32[], weight of the tokens learnt from since it last met.
    tokens: list[jax.Array]
    untold: Untold
    loss: jax.Array  # float32[], mean over all tokens, told at the last meeting: of all


class Apart(NamedTuple):
    """What the replicas keep beside parameters and optimizers."""

    fragments: list[Fragment]
    tally: Tally  # each


FRAGMENT = Fragment(agreed=ONCE, outer=ONCE, arriving=ONCE, comm=EACH)
# Before the first meeting: finite, and so high that each loss is better.
UNKNOWN_LOSS = 1e30


def first_fragments(params: Params, exchange: Exchange, plan: Plan) -> list[Fragment]:
    """Return the fragments of replicas that begin from these parameters."""
    return [
        Fragment(
            agreed=own,
            outer=plan.outer.init(own),
            arriving=jax.tree.map(jnp.zeros_like, own) if plan.overlap else [],
            comm=exchange.init(own),
        )
        for own in split(params, plan.fragments)
    ]


def first_tally(num_fragments: int, shape: tuple[int, ...] = ()) -> Tally:
    tokens = [jnp.zeros(shape) for _ in range(num_fragments)]
    untold = Untold(*[jnp.zeros(shape) for _ in Untold._fields])
    return Tally(tokens, untold, jnp.full(shape, UNKNOWN_LOSS, jnp.float32))


def counted(tally: Tally, finite: jax.Array, sums: Metrics) -> Tally:
    """Count the tokens of a step, or the step itself if it was skipped.

    `sums` are those of the replica's own rows. Of a skipped step nothing was learnt.
    """
    untold = tally.untold
    tokens = jnp.where(finite, weight_of(sums), 0.0)
    untold = Untold(
        loss=untold.loss + jnp.where(finite, sums["loss"], 0.0),
        tokens=untold.tokens + tokens,
        skipped=untold.skipped + jnp.where(finite, 0.0, 1.0),
        in_a_row=jnp.where(finite, 0.0, untold.in_a_row + 1.0),
    )
    learnt = [before + tokens for before in tally.tokens]
    return tally._replace(tokens=learnt, untold=untold)


def meetings(
    plan: Plan,
    step: np.integer,
    state: TrainState,
    meet: list[Callable[[TrainState], tuple[TrainState, jax.Array]]],
    arrive: list[Callable[[TrainState], tuple[TrainState, Any]]],
    share: list[Callable[[TrainState], tuple[TrainState, Any]]],
) -> tuple[TrainState, Metrics]:
    """Let the fragments meet whose turn it is after this step, and let arrive what is due.

    `meet` and `arrive` are programs, one of each fragment, and `share` is the one after
    which they train apart, if there are steps before; the host calls them. Return also what
    the replicas told, if any have met.
    """
    told: Metrics = {}
    for program in share if step == plan.together else ():
        state, _ = program(state._replace(step=step))
    for index in range(plan.fragments):
        if plan.waits(index, step):
            state, _ = arrive[index](state._replace(step=step))
        if plan.meets(index, step):
            state, news = meet[index](state._replace(step=step))
            # Of several meetings in one step, the first has told all.
            told = told or {SKIPPED: news[0], IN_A_ROW: news[1]}
        if plan.overlap and plan.arrives(index, step):
            state, _ = arrive[index](state._replace(step=step))
    return state._replace(step=step), told


def share(state: TrainState, plan: Plan, axes: tuple[str, ...]) -> tuple[TrainState, tuple]:
    """Let all replicas agree on the parameters from which they will train apart.

    If the first replica has trained alone, all take its parameters, and what the others
    learnt is dropped. Each keeps its own optimizer state, so that only parameters travel.
    After steps in which they exchanged gradients, all have the same ones already, and
    nothing travels. What was counted of tokens and losses begins anew. It runs where `axes`
    are bound.
    """
    params = state.params
    if plan.alone:
        with jax.named_scope("warmup"):
            params = broadcast(params, axes)
    fragments = [
        fragment._replace(agreed=own)
        for fragment, own in zip(
            state.comm.fragments, split(params, plan.fragments), strict=True
        )
    ]
    tally = state.comm.tally
    zero = jnp.float32(0)
    untold = tally.untold._replace(loss=zero, tokens=zero)
    tally = tally._replace(tokens=[zero] * plan.fragments, untold=untold)
    return state._replace(params=params, comm=Apart(fragments, tally)), ()


def broadcast(tree: Any, axes: tuple[str, ...]) -> Any:
    """Return the tree of the first replica; each replica sends it on to the next one."""
    x_n, unflatten = ravel_pytree(tree)
    index = jax.lax.axis_index(axes)
    for place in range(1, jax.lax.axis_size(axes)):
        received_n = send(x_n, axes, [(place - 1, place)])
        x_n = jnp.where(index == place, received_n, x_n)
    return unflatten(x_n)


def meet(
    state: TrainState,
    index: int,
    exchange: Exchange,
    plan: Plan,
    axes: tuple[str, ...],
    learner: Learner,
) -> tuple[TrainState, jax.Array]:
    """Exchange the moves of fragment `index`; apply their mean, or let it wait.

    Return also what the replicas told, float32[2, W]: the steps that each skipped since it
    last told, and those in a row. It runs where `axes` are bound. Of the state it reads
    the step, the parameters and `comm`.
    """

    def exchanged(state: TrainState) -> tuple[TrainState, jax.Array]:
        key = jax.random.fold_in(learner.exchange_key(state.step), index)
        own = split(state.params, plan.fragments)[index]
        mine = state.comm.tally.tokens[index]
        comm, tokens, news = tell(state.comm, index, axes)
        means, fragment = exchange_moves(
            own, mine, comm.fragments[index], exchange, tokens, key
        )
        state = with_fragment(state._replace(comm=comm), index, fragment)
        if plan.overlap:
            return with_fragment(state, index, fragment._replace(arriving=means)), news
        return apply(state, index, plan, means), news

    # The ledger reads how often this runs. It is a function's name, for the cache of
    # compiled programs does not tell scopes apart.
    exchanged.__name__ = f"once_in_{plan.every}_steps"
    return jax.jit(exchanged)(state)


def arrive(state: TrainState, index: int, plan: Plan) -> TrainState:
    """Let the mean move of fragment `index` arrive, which waited since its meeting."""
    return apply(state, index, plan, state.comm.fragments[index].arriving)


def apply(state: TrainState, index: int, plan: Plan, outer_grads: Params) -> TrainState:
    """Take the outer optimizer's step, and mix its result into a replica's parameters."""
    fragment = state.comm.fragments[index]
    updates, outer = plan.outer.update(outer_grads, fragment.outer, fragment.agreed)
    agreed = optax.apply_updates(fragment.agreed, updates)
    own = split(state.params, plan.fragments)[index]
    mixed = jax.tree.map(lambda x, y: plan.mix * x + (1 - plan.mix) * y, own, agreed)
    params = join(state.params, plan.fragments, index, mixed)
    fragment = fragment._replace(agreed=agreed, outer=outer)
    return with_fragment(state._replace(params=params), index, fragment)


def tell(
    comm: Apart, index: int, axes: tuple[str, ...]
) -> tuple[Apart, jax.Array, jax.Array]:
    """Sum the tokens of fragment `index`, and tell all replicas what each has to tell.

    Return the sum and float32[2, W], the skipped steps of each replica as in `meet`.
    """
    (tokens, untold, last_told), zero = comm.tally, jnp.float32(0)
    mine = jax.nn.one_hot(jax.lax.axis_index(axes), jax.lax.axis_size(axes))
    news = jnp.stack([untold.skipped * mine, untold.in_a_row * mine])
    sums = jnp.stack([tokens[index], untold.loss, untold.tokens])
    (weight, loss, told), news = psum_in_one((sums, news), axes)
    loss = jnp.where(told > 0, loss / divisor(told), last_told)
    tokens = [zero if i == index else x for i, x in enumerate(tokens)]
    tally = Tally(tokens, Untold(zero, zero, zero, untold.in_a_row), loss)
    return comm._replace(tally=tally), weight, news


def exchange_moves(
    own: Params,
    mine: jax.Array,
    fragment: Fragment,
    exchange: Exchange,
    tokens: jax.Array,
    key: Key,
) -> tuple[Params, Fragment]:
    """Return the mean move of the replicas, each weighted by its share of the tokens."""
    moves = jax.tree.map(lambda a, x: (a - x) * mine, fragment.agreed, own)
    means, comm = exchange.update(
        moves, fragment.comm, fragment.agreed, weight=divisor(tokens), key=key
    )
    return means, fragment._replace(comm=comm)


def with_fragment(state: TrainState, index: int, fragment: Fragment) -> TrainState:
    fragments = list(state.comm.fragments)
    fragments[index] = fragment
    return state._replace(comm=state.comm._replace(fragments=fragments))
