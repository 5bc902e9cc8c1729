"""Fewer meetings: replicas train by themselves and meet once in many steps.

Each replica has its own parameters and optimizer state. At a meeting the replicas exchange
how far each has moved since the last meeting, and an outer optimizer takes the mean move as
its gradient. One construction gives four strategies:

  local_sgd         the outer step is the average (McMahan et al. 2017; Stich 2019)
  post_local_sgd    local_sgd, after first steps that exchange gradients (Lin et al. 2020)
  diloco            the outer optimizer is Nesterov momentum (Douillard et al. 2023)
  streaming_diloco  fragments of the parameters meet one after the other, and the result of
                    a meeting arrives some steps later (Douillard et al. 2025)

Moves go through the same Exchange as gradients do in other strategies, so they can be
compressed, with error feedback.

Only sums cross. A replica's move is weighted by the tokens that the replica has seen since
the last meeting. So with one plain SGD step between meetings, a meeting is the step of the
whole batch, even if the rows are uneven. Between meetings nothing is exchanged, not even
metrics: a replica reports its own metrics, multiplied by the number of replicas.
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

from parallel.balance import balanced
from parallel.collectives import psum_in_one
from parallel.exchange.transforms import Exchange
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
from parallel.replicas import EACH, ONCE, for_each, placed, spread

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
    """What the replicas know of one part of the parameters, a list of leaves."""

    agreed: list[jax.Array]  # once: the parameters of the last meeting
    outer: optax.OptState  # once
    arriving: list[jax.Array]  # once: the outer gradient that waits for `overlap` steps
    tokens: jax.Array  # each: float32[], the weight of those since the last meeting
    comm: Any  # each: what the exchange keeps


FRAGMENT = Fragment(agreed=ONCE, outer=ONCE, arriving=ONCE, tokens=EACH, comm=EACH)


def local_program(
    learner: Learner, mesh: Mesh, accumulation: int, exchange: Exchange, plan: Plan
) -> Program:
    """Train replicas apart; `exchange` sums over them at a meeting."""
    num_replicas, axes = batch_degree(mesh), batch_axes(mesh)
    placement = TrainState(
        step=ONCE, params=EACH, opt=EACH, comm=[FRAGMENT] * plan.fragments, scale=EACH
    )

    adopt = partial(part, exchange, plan, num_replicas)

    def init(key: Key) -> TrainState:
        return adopt(learner.initial_state(key))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        sum_early = partial(sum_gradients_before, plan.first, axes)
        state, metrics = own_step(learner, state, batch, accumulation, sum_early)
        # A replica sees only its own sums; it estimates the global ones by multiplying by
        # the number of replicas.
        known = jnp.where(state.step <= plan.first, 1, num_replicas)
        global_sums = {"loss", "tokens", "weight"} & metrics.keys()
        metrics |= {name: metrics[name] * known for name in global_sums}
        for index in range(plan.fragments):
            state = meetings(state, index, exchange, plan, axes, learner)
        return state, metrics

    abstract = placed(init, mesh, placement)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    once = NamedSharding(mesh, P())
    plain = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=once),
        jax.eval_shape(learner.initial_state, jax.random.key(0)),
    )
    particular = (abstract.params, abstract.opt, abstract.comm, abstract.scale)
    average = jax.jit(consensus, out_shardings=once)
    begin = jax.jit(adopt, out_shardings=shardings, donate_argnums=0)

    def portable(state: TrainState) -> TrainState:
        params, opt, scale = average((state.params, state.opt, state.scale))
        own = (state.params, state.opt, state.comm, state.scale)
        return TrainState(state.step, params, opt, own, scale)

    def adopt_or_go_on(state: TrainState) -> TrainState:
        return TrainState(state.step, *state.comm) if state.comm else begin(state)

    return Program(
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(spread(step, mesh, placement), donate_argnums=0),
        params=lambda state: average(state.params),
        place=lambda batch: place_rows(mesh, batch),
        mesh=mesh,
        abstract=abstract,
        portable=portable,
        adopt=adopt_or_go_on,
        saved=plain._replace(comm=particular),
    )


def part(
    exchange: Exchange, plan: Plan, num_replicas: int, state: TrainState
) -> TrainState:
    """Give each replica a state of its own; they agree on what they begin from."""
    comm = [
        Fragment(
            agreed=leaves,
            outer=plan.outer.init(leaves),
            arriving=jax.tree.map(jnp.zeros_like, leaves) if plan.overlap else [],
            tokens=jnp.zeros(num_replicas),
            comm=for_each(exchange.init(leaves), num_replicas),
        )
        for leaves in split(state.params, plan.fragments)
    ]
    own = for_each((state.params, state.opt, state.scale), num_replicas)
    return TrainState(state.step, own[0], own[1], comm, own[2])


def own_step(
    learner: Learner,
    state: TrainState,
    batch: Batch,
    accumulation: int,
    sum_early: Callable[[jax.Array, Any], Any],
) -> tuple[TrainState, Metrics]:
    """Take one step of this replica's optimizer, and count its tokens."""
    key = learner.step_key(state.step)
    grads, sums = gradients(
        learner.task.loss, state.params, batch, key, state.scale.value, accumulation
    )
    tokens = weight_of(sums)
    grads, sums = sum_early(state.step, (grads, sums))
    means = divided(grads, total_weight(sums, state.scale))
    state, metrics = update(learner, state, state.params, means, sums)
    comm = [f._replace(tokens=f.tokens + tokens) for f in state.comm]
    return state._replace(comm=comm), metrics


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
) -> TrainState:
    """Let fragment `index` meet if it is its turn, and let its result arrive if due."""
    turn = (index + 1) * plan.every // plan.fragments  # the last one at the very end
    since = (state.step - turn) % plan.every
    key = jax.random.fold_in(learner.step_key(state.step), index)

    def meet(state: TrainState) -> TrainState:
        fragment = state.comm[index]
        own = split(state.params, plan.fragments)[index]
        outer_grads, fragment = exchange_moves(own, fragment, exchange, axes, key)
        if plan.overlap:
            fragment = fragment._replace(arriving=outer_grads)
            return with_fragment(state, index, fragment)
        return arrive(with_fragment(state, index, fragment), outer_grads)

    def arrive(state: TrainState, outer_grads) -> TrainState:
        fragment = state.comm[index]
        updates, outer = plan.outer.update(outer_grads, fragment.outer, fragment.agreed)
        agreed = optax.apply_updates(fragment.agreed, updates)
        own = split(state.params, plan.fragments)[index]
        mixed = [
            plan.mix * x + (1 - plan.mix) * y for x, y in zip(own, agreed, strict=True)
        ]
        params = join(state.params, plan.fragments, index, mixed)
        fragment = fragment._replace(agreed=agreed, outer=outer)
        return with_fragment(state._replace(params=params), index, fragment)

    with jax.named_scope(f"once_in_{plan.every}_steps"):
        state = jax.lax.cond(since == 0, meet, lambda state: state, state)
    if not plan.overlap:
        return state
    return jax.lax.cond(
        (since == plan.overlap) & (state.step >= turn + plan.overlap),
        lambda state: arrive(state, state.comm[index].arriving),
        lambda state: state,
        state,
    )


def exchange_moves(
    own: list[jax.Array], fragment: Fragment, exchange: Exchange, axes, key: Key
) -> tuple[list[jax.Array], Fragment]:
    """Return the mean move of the replicas, each weighted by its tokens."""
    total = divisor(jax.lax.psum(fragment.tokens, axes))
    moves = [
        (agreed - x) * fragment.tokens
        for agreed, x in zip(fragment.agreed, own, strict=True)
    ]
    means, comm = exchange.update(
        moves, fragment.comm, fragment.agreed, weight=total, key=key
    )
    return means, fragment._replace(comm=comm, tokens=jnp.zeros_like(fragment.tokens))


def with_fragment(state: TrainState, index: int, fragment: Fragment) -> TrainState:
    comm = list(state.comm)
    comm[index] = fragment
    return state._replace(comm=comm)


def fragment_of_leaves(params: Params, num_fragments: int) -> list[int]:
    """Return each leaf's fragment, so that all have about as many elements."""
    return balanced([x.size for x in jax.tree.leaves(params)], num_fragments)


def split(params: Params, num_fragments: int) -> list[list[jax.Array]]:
    chosen = fragment_of_leaves(params, num_fragments)
    leaves = jax.tree.leaves(params)
    return [
        [x for x, fragment in zip(leaves, chosen, strict=True) if fragment == index]
        for index in range(num_fragments)
    ]


def join(params: Params, num_fragments: int, index: int, new: list[jax.Array]) -> Params:
    """Put the leaves of one fragment back among the others."""
    chosen = fragment_of_leaves(params, num_fragments)
    leaves, structure = jax.tree.flatten(params)
    fresh = iter(new)
    leaves = [
        next(fresh) if fragment == index else x
        for x, fragment in zip(leaves, chosen, strict=True)
    ]
    return structure.unflatten(leaves)


def consensus(tree):
    """Average floats over the replicas; integers (step counts) are the same on all."""

    def one(x: jax.Array) -> jax.Array:
        return jnp.mean(x, 0) if jnp.issubdtype(x.dtype, jnp.floating) else x[0]

    return jax.tree.map(one, tree)
