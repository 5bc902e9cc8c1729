"""Fewer meetings: replicas train by themselves and meet once in many steps.

Each replica has its own parameters and optimizer state. At a meeting the replicas exchange
how far each has moved since the last meeting, and an outer optimizer takes the mean move as
its gradient. One construction gives four strategies:

  local_sgd         the outer step is the average (McMahan et al. 2017; Stich 2019)
  post_local_sgd    local_sgd, after first steps that exchange gradients (Lin et al. 2020)
  diloco            the outer optimizer is Nesterov momentum (Douillard et al. 2023)
  streaming_diloco  fragments of the parameters, whole layers, meet one after the other,
                    and the result of a meeting arrives some steps later (Douillard et al.
                    2025). Here a device holds the meeting between two steps: the result
                    is as late as in the paper, but no computation hides its journey

Moves go through the same Exchange as gradients do in other strategies, so they can be
compressed, with error feedback.

They may begin from a state that one of them has trained alone (`alone`), which takes one
broadcast of the parameters, half of what one all-reduce sends. The other replicas train in
these steps too, but for the moments of their own optimizers only.

A meeting is a program of its own, which the host calls after the steps that have one. A run
ends with a meeting, even between two others. Replicas of several devices are islands
(parallel/islands/program.py).

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
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.collectives import psum_in_one
from parallel.exchange.transforms import Exchange
from parallel.meetings import (
    FRAGMENT,
    Apart,
    Plan,
    Tally,
    arrive,
    counted,
    first_fragments,
    first_tally,
    meet,
    meetings,
    share,
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
from parallel.regroup import dealt, num_given
from parallel.replicas import EACH, ONCE, for_each, placed, spread

OUTER = {"parallel.strategy": ("diloco", "streaming_diloco", "async_diloco")}
STREAMING = {"parallel.strategy": ("streaming_diloco",)}
FROM_ONE = {"parallel.strategy": ("local_sgd", "diloco", "streaming_diloco")}


@dataclass
class LocalConfig:
    # what a replica does inside, on several devices: another strategy, which synchronises
    # them (parallel.slice is the number of replicas, parallel.server.workers that of
    # async_diloco); none: a replica is one device
    inner: str = field(default="none", metadata={"decides": False})
    # H, steps that replicas train alone before they meet; of async_diloco: before they push
    every: int = field(default=50, metadata={"at_least": 1})
    # steps at the start in which gradients are exchanged in every step
    first: int = field(
        default=100,
        metadata={"at_least": 0, "only": {"parallel.strategy": ("post_local_sgd",)}},
    )
    # steps at the start, after which all replicas take the parameters of the first one: it
    # has trained alone until then; 0: they meet from the start
    alone: int = field(default=0, metadata={"at_least": 0, "only": FROM_ONE})
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
    "local_sgd": lambda c: Plan(c.every, optax.sgd(1.0), alone=c.alone),
    "post_local_sgd": lambda c: Plan(c.every, optax.sgd(1.0), first=c.first),
    "diloco": lambda c: Plan(c.every, nesterov(c), alone=c.alone),
    "streaming_diloco": lambda c: Plan(
        c.every, nesterov(c), c.fragments, c.overlap, c.mix, alone=c.alone
    ),
}


def local_program(
    learner: Learner, mesh: Mesh, accumulation: int, exchange: Exchange, plan: Plan
) -> Program:
    """Train replicas apart; `exchange` sums over them at a meeting."""
    num_replicas, axes = batch_degree(mesh), batch_axes(mesh)
    apart = Apart([FRAGMENT] * plan.fragments, tally=EACH)
    placement = TrainState(step=ONCE, params=EACH, opt=EACH, comm=apart, scale=EACH)

    begin_apart = partial(part, exchange, plan, num_replicas)
    following = learner._replace(told_loss=partial(common_loss, plan.first))

    def init(key: Key) -> TrainState:
        return begin_apart(learner.initial_state(key))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        sum_early = partial(sum_gradients_before, plan.first, axes)
        return own_step(following, state, batch, accumulation, sum_early)

    def together(change: Callable[[TrainState], tuple[TrainState, Any]]) -> Callable:
        """Make a program of a change that all replicas take part in."""
        spread_change = spread(lambda state, _: change(state), mesh, placement)
        return jax.jit(lambda state: spread_change(state, {}), donate_argnums=0)

    abstract = placed(init, mesh, placement)
    indices = range(plan.fragments)
    met = [
        together(
            partial(meet, index=i, exchange=exchange, plan=plan, axes=axes, learner=learner)
        )
        for i in indices
    ]
    arrived = [
        together(lambda state, i=i: (arrive(state, i, plan), ()))
        for i in indices
        if plan.overlap
    ]
    shared = [together(partial(share, plan=plan, axes=axes))] if plan.together else []
    steps = ApartSteps(
        plan,
        mesh,
        own=jax.jit(spread(step, mesh, placement, EACH), donate_argnums=0),
        meet=met,
        arrive=arrived,
        share=shared,
        compile_meetings=compiled_once(met, arrived, shared, given=(abstract,)),
    )
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
        return TrainState(jax.device_put(state.step, once), params, opt, own, scale)

    def adopt(state: TrainState) -> TrainState:
        if not state.comm:
            return numbered(begin(state))
        if num_given(state.comm[0]) == num_replicas:
            return numbered(TrainState(state.step, *state.comm))
        return numbered(regroup(state))

    start = jax.jit(init, out_shardings=shardings)
    return Program(
        init=lambda key: numbered(start(key)),
        step=steps,
        params=lambda state: average(state.params),
        place=lambda batch: place_rows(mesh, batch),
        mesh=mesh,
        abstract=abstract,
        portable=portable,
        adopt=adopt,
        saved=plain._replace(comm=particular),
    )


class ApartSteps(NamedTuple):
    """Steps that replicas take by themselves, and then what is due of the meetings.

    The host knows the number of the step, and calls the programs of the meetings. It is
    traced, lowered and compiled as a jitted function is.
    """

    plan: Plan
    mesh: Mesh
    own: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    meet: list[Callable]  # of each fragment: state -> (state, what was told)
    arrive: list[Callable]  # of each fragment, if it arrives late
    share: list[Callable]  # ends the steps before the replicas train apart, if any
    compile_meetings: Callable[[], list[list[Callable]]]

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        step = np.int32(state.step + 1)
        state, metrics = self.own(state, batch)
        programs = self.meet, self.arrive, self.share
        state, told = meetings(self.plan, step, state, *programs)
        return state, metrics | told

    def lower(self, state: TrainState, batch: Batch) -> "ApartSteps":
        return self._replace(own=self.own.lower(state, batch))

    def compile(self) -> "ApartSteps":
        met, arrived, shared = self.compile_meetings()
        own = self.own.compile()
        return self._replace(own=own, meet=met, arrive=arrived, share=shared)

    @property
    def programs(self) -> list[tuple[Any, Mesh]]:
        """Return the programs that one device runs, once compiled, and their meshes."""
        all_programs = (self.own, *self.meet, *self.arrive, *self.share)
        return [(f, self.mesh) for f in all_programs]

    def memory_analysis(self) -> Any:
        """Return that of the program that needs the most."""
        found = [program.memory_analysis() for program, _ in self.programs]
        return max(
            found,
            key=lambda m: (
                m.argument_size_in_bytes
                + m.temp_size_in_bytes
                + m.output_size_in_bytes
                - m.alias_size_in_bytes
            ),
        )

    def cost_analysis(self) -> dict[str, float]:
        return self.own.cost_analysis()


def compiled_once(*groups: list[Callable], given: tuple) -> Callable[[], list]:
    """Return what compiles programs for the arguments `given`: once, if asked again.

    A batch may have several shapes; the meetings are the same for all.
    """
    return cache(lambda: [[f.lower(*given).compile() for f in each] for each in groups])


def numbered(state: TrainState) -> TrainState:
    """Return the state with the number of its step on the host."""
    return state._replace(step=np.int32(state.step))


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
    apart = Apart(fragments, tally)
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
    loss = jnp.full(num_replicas, apart.tally.loss[0])
    untold = first_tally(0, (num_replicas,)).untold
    return Apart(fragments, Tally(tokens, untold, loss))


def own_step(
    learner: Learner,
    state: TrainState,
    batch: Batch,
    accumulation: int,
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
    # While gradients are exchanged, all know the loss of each step.
    told = learner.told_loss(state, sums["loss"] / divisor(weight_of(sums)))
    state, metrics = update(learner, state, state.params, means, sums)

    tally = counted(state.comm.tally, metrics["finite"], own)
    tally = tally._replace(loss=jnp.where(metrics["finite"], told, tally.loss))
    return state._replace(comm=state.comm._replace(tally=tally)), metrics | own


def common_loss(first: int, state: TrainState, loss: jax.Array) -> jax.Array:
    """Return the loss that all replicas know: that told at the last meeting.

    In the first steps of post-local SGD the sums, and so `loss`, are those of all replicas.
    """
    told = state.comm.tally.loss
    return jnp.where(state.step < first, loss, told) if first else told


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
