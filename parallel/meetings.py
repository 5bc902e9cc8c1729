"""Meetings of replicas that train apart: what each of them keeps, and what they exchange.

parallel/local.py makes a Program of it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from parallel.collectives import psum_in_one
from parallel.exchange.transforms import Exchange
from parallel.fragments import join, split
from parallel.program import Key, Learner, Params, TrainState, divisor
from parallel.replicas import EACH, ONCE


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


class Fragment(NamedTuple):
    """What the replicas know of one part of the parameters (parallel/fragments.py)."""

    agreed: Params  # once: the parameters of the last meeting
    outer: optax.OptState  # once
    arriving: Params  # once: the outer gradient that waits for `overlap` steps
    tokens: jax.Array  # each: float32[], weight of those learnt from since the last meeting
    comm: Any  # each: what the exchange keeps


class Untold(NamedTuple):
    """What one replica will tell the others when next a fragment meets."""

    loss: jax.Array  # float32[], summed over the tokens of the steps that were not skipped
    tokens: jax.Array  # float32[], their weight
    skipped: jax.Array  # float32[], steps
    in_a_row: jax.Array  # float32[], skipped steps in a row, up to now


class Apart(NamedTuple):
    """What the replicas keep beside parameters and optimizers."""

    fragments: list[Fragment]
    untold: Untold  # each
    loss: jax.Array  # once: float32[], mean over all tokens, told at the last meeting


FRAGMENT = Fragment(agreed=ONCE, outer=ONCE, arriving=ONCE, tokens=EACH, comm=EACH)


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
    loss = jnp.where(told > 0, loss / divisor(told), comm.loss)
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
