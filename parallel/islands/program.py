"""Replicas that are islands: several devices, synchronous inside, that meet rarely.

An island is a submesh. The Program of the inner strategy is made for each island by its own
constructor, and the host lets the islands step in turn. A process makes the programs of its
own islands alone. The meetings are those of parallel/local.py, and are a program of their
own, which the host calls once in many steps. It sees the islands' parameters as arrays over
all islands (parallel/islands/submeshes.py).

Between meetings, `comm.tally` is a list, one tally of each island of this process.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.exchange.transforms import Exchange
from parallel.islands.common_loss import Following, following
from parallel.islands.outer import Outer, with_dims, without_dims
from parallel.islands.submeshes import carry, islands_of, join, move, part, shaped
from parallel.layout import bytes_per_device
from parallel.local import compiled_once, consensus, regrouped_apart
from parallel.meetings import Apart, Plan, Tally, counted, meetings
from parallel.mesh import place_rows
from parallel.program import (
    SLICE,
    Batch,
    Learner,
    Metrics,
    Params,
    Program,
    TrainState,
)
from parallel.regroup import num_given
from parallel.replicas import for_each


class Memory(NamedTuple):
    """What a compiled program's memory_analysis has, in bytes on one device."""

    argument_size_in_bytes: int
    output_size_in_bytes: int
    alias_size_in_bytes: int
    temp_size_in_bytes: int
    generated_code_size_in_bytes: int


class Stepping(NamedTuple):
    """A step of all islands: each one's own, then what is due of the meetings.

    It is traced, lowered and compiled as a jitted function is.
    """

    own: list[Callable]  # (step, params, opt, scale, tally, batch), one of each island
    outer: Outer
    meet: list[Callable]  # of each fragment
    arrive: list[Callable]  # of each fragment, if it arrives late
    share: list[Callable]  # ends the steps that the first island trains alone, if any
    islands: list[Mesh]
    compile_meetings: Callable[[], list[list[Callable]]]
    outer_bytes: int  # of what islands keep, on the device that keeps the most

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        found = [
            f(*xs) for f, xs in zip(self.own, self.arguments(state, batch), strict=True)
        ]
        params, opt, scale, tally, metrics = map(list, zip(*found, strict=True))
        step = np.int32(state.step + 1)
        comm = state.comm._replace(tally=tally)
        state = TrainState(step, params, opt, comm, scale)
        programs = [
            [partial(self.outer_step, f) for f in each]
            for each in (self.meet, self.arrive, self.share)
        ]
        state, told = meetings(self.plan, step, state, *programs)
        return state, join(self.outer.one_each, metrics) | told

    def arguments(self, state: TrainState, batch: Batch) -> list[tuple]:
        """Return what each island's own step is given."""
        steps = [state.step] * len(self.own)
        parts = (state.params, state.opt, state.scale, state.comm.tally)
        return list(zip(steps, *parts, part(batch, self.islands), strict=True))

    def outer_step(self, change: Callable, state: TrainState) -> tuple[TrainState, Any]:
        outer = self.outer
        params, comm = join(outer.mesh, state.params), state.comm
        comm = comm._replace(tally=join(outer.mesh, comm.tally))
        params, comm, told = change(state.step, params, comm)
        comm = comm._replace(tally=carry(comm.tally, outer.islands, self.islands))
        if params:
            parts = carry(params, outer.islands, self.islands)
            pairs = zip(parts, state.params, strict=True)
            state = state._replace(params=[shaped(*pair) for pair in pairs])
        return state._replace(comm=comm), told

    def lower(self, state: TrainState, batch: Batch) -> "Stepping":
        pairs = zip(self.own, self.arguments(state, batch), strict=True)
        return self._replace(own=[f.lower(*xs) for f, xs in pairs])

    def compile(self) -> "Stepping":
        met, arrived, shared = self.compile_meetings()
        own = [f.compile() for f in self.own]
        return self._replace(own=own, meet=met, arrive=arrived, share=shared)

    @property
    def plan(self) -> Plan:
        return self.outer.plan

    @property
    def programs(self) -> list[tuple[Any, Mesh]]:
        """Return the programs that one device runs, once compiled, and their meshes."""
        inside = [(self.own[0], self.islands[0])]
        outside = self.meet + self.arrive + self.share
        return inside + [(f, self.outer.mesh) for f in outside]

    def memory_analysis(self) -> Memory:
        """Return that of an island's step; what islands keep lies beside it."""
        own = self.own[0].memory_analysis()
        memory = Memory(*[getattr(own, name) for name in Memory._fields])
        kept = memory.argument_size_in_bytes + self.outer_bytes
        return memory._replace(argument_size_in_bytes=kept)

    def cost_analysis(self) -> dict[str, float]:
        return self.own[0].cost_analysis()


def island_step(inner: Program) -> Callable:
    """Return the step of one island, which counts what it will tell the others.

    The metrics are [1], of this island.
    """
    island = inner.mesh
    everywhere = NamedSharding(island, P())

    def step(number, params, opt, scale, tally: Tally, batch: Batch):
        tally = jax.tree.map(partial(without_dims, 1), tally)
        scale = Following(scale, tally.loss)
        state = TrainState(number, params, opt, inner.abstract.comm, scale)
        state, metrics = inner.step(state, batch)
        tally = counted(tally, metrics["finite"], metrics)
        told = jax.tree.map(partial(with_dims, 1), (tally, metrics))
        return state.params, state.opt, state.scale.own, *told

    places = jax.tree.map(lambda x: x.sharding, inner.abstract)
    shardings = (places.params, places.opt, places.scale.own, everywhere, everywhere)
    return jax.jit(step, out_shardings=shardings, donate_argnums=(1, 2, 3, 4))


def with_a_loss(scale: Any) -> Following:
    """Return what an inner program takes for a scale where it takes no step.

    The loss is any number, in an array of its own: the program may take it over.
    """
    return Following(scale, jnp.copy(scale.value))


def without_loss(state: TrainState) -> TrainState:
    return state._replace(scale=state.scale.own)


class Forms:
    """The state of the islands in other forms: to begin from, to save, to take back."""

    def __init__(self, mesh: Mesh, inners: list[Program], outer: Outer):
        self.mesh, self.inners, self.outer = mesh, inners, outer
        self.islands = [inner.mesh for inner in inners]
        inner = inners[0]
        saved = without_loss(inner.abstract_portable)
        # Of one island, or of their average; of all of them, [W, ...]; and joined.
        self.plain = self.on_all(lambda x: (x.shape, x.sharding.spec), saved)
        own = self.plain.params, self.plain.opt, self.plain.scale
        num = mesh.shape[SLICE]
        all_own = self.on_all(lambda x: ((num, *x.shape), P(SLICE, *x.sharding.spec)), own)
        kept = self.on_all(
            lambda x: (x.shape, x.sharding.spec), outer.abstract(inner.abstract.params)
        )
        self.saved = self.plain._replace(comm=(*all_own[:2], kept, all_own[2]))
        joined = join(mesh, [own])

        def average(xs):
            xs = jax.tree.map(lambda x, y: x.reshape(y.shape), xs, all_own)
            return xs, consensus(xs)

        def join_all(xs):
            return jax.tree.map(lambda x, y: x.reshape(y.shape), xs, joined)

        def average_params(xs):
            xs = jax.tree.map(lambda x, y: x.reshape(y.shape), xs, all_own[0])
            return consensus(xs)

        def laid(function: Callable, like: Any) -> Callable:
            return jax.jit(function, out_shardings=jax.tree.map(lambda x: x.sharding, like))

        self.average = laid(average, (all_own, own))
        self.average_params = laid(average_params, own[0])
        self.join_all = laid(join_all, joined)
        self.join_same = laid(lambda xs: join_all(for_each(xs, num)), joined)
        self.regroup = laid(partial(regrouped_apart, num), kept)

    def on_all(self, place: Callable, tree: Any) -> Any:
        """Return the shapes of a tree on all devices; `place` gives shape and spec."""

        def one(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            shape, spec = place(x)
            sharding = NamedSharding(self.mesh, spec)
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)

        return jax.tree.map(one, tree)

    def states(self, state: TrainState) -> list[TrainState]:
        """Return the state that each inner program has."""
        return [
            TrainState(state.step, params, opt, inner.abstract.comm, with_a_loss(scale))
            for inner, params, opt, scale in zip(
                self.inners, state.params, state.opt, state.scale, strict=True
            )
        ]

    def params(self, state: TrainState) -> Params:
        """Return the average of the islands' parameters."""
        pairs = zip(self.inners, self.states(state), strict=True)
        return self.average_params(join(self.mesh, [p.params(own) for p, own in pairs]))

    def portable(self, state: TrainState) -> TrainState:
        pairs = zip(self.inners, self.states(state), strict=True)
        plain = [without_loss(inner.portable(own)) for inner, own in pairs]
        joined = join(self.mesh, [(own.params, own.opt, own.scale) for own in plain])
        (all_params, all_opt, all_scale), (params, opt, scale) = self.average(joined)
        tally = join(self.mesh, state.comm.tally)
        kept = move(
            state.comm._replace(tally=()), self.outer.islands, self.islands, self.mesh
        )
        comm = all_params, all_opt, kept._replace(tally=tally), all_scale
        step = jax.device_put(state.step, self.plain.step.sharding)
        return TrainState(step, params, opt, comm, scale)

    def adopt(self, state: TrainState) -> TrainState:
        kept = None
        if state.comm and num_given(state.comm[0]) == self.mesh.shape[SLICE]:
            params, opt, kept, scale = state.comm
            joined = self.join_all((params, opt, scale))
        else:
            joined = self.join_same((state.params, state.opt, state.scale))
            kept = self.regroup(state.comm[2]) if state.comm else None
        step = np.int32(state.step)
        like = self.plain.params, self.plain.opt, self.plain.scale
        owns = []
        for inner, own in zip(self.inners, part(joined, self.islands), strict=True):
            params, opt, scale = shaped(own, like)
            own = TrainState(step, params, opt, (), with_a_loss(scale))
            owns.append(without_loss(inner.adopt(own)))
        params = [own.params for own in owns]
        comm = self.kept_again(kept) if kept else self.begun(params)
        return TrainState(
            step, params, [s.opt for s in owns], comm, [s.scale for s in owns]
        )

    def begun(self, params: list[Params]) -> Apart:
        """Return what islands keep that begin from the same parameters."""
        comm = self.outer.begin(join(self.outer.mesh, params))
        tally = carry(comm.tally, self.outer.islands, self.islands)
        return comm._replace(tally=tally)

    def kept_again(self, kept: Apart) -> Apart:
        """Take back what the islands kept."""
        places = jax.tree.map(lambda x: x.sharding, self.saved.comm[2])
        kept = jax.device_put(kept, places)
        comm = move(
            kept._replace(tally=()), self.islands, self.outer.islands, self.outer.mesh
        )
        return comm._replace(tally=part(kept.tally, self.islands))


def islands_program(
    learner: Learner,
    mesh: Mesh,
    build_inner: Callable[[Learner, Mesh], Program],
    exchange: Exchange,
    plan: Plan,
) -> Program:
    """Train islands apart, along the axis `slice`, each by the program built for it.

    `exchange` sums over the axis `slice` at a meeting.
    """
    islands = islands_of(mesh)
    inners = [build_inner(following(learner), island) for island in islands]
    like = inners[0].abstract
    outer = Outer(learner, mesh, like.params, exchange, plan)
    forms = Forms(mesh, inners, outer)
    kept = outer.abstract(like.params)
    abstract = TrainState(
        step=jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(outer.mesh, P())),
        params=[inner.abstract.params for inner in inners],
        opt=[inner.abstract.opt for inner in inners],
        comm=kept._replace(tally=part(kept.tally, islands)),
        scale=[inner.abstract.scale.own for inner in inners],
    )

    number = jax.ShapeDtypeStruct((), np.int32)
    given = number, join(outer.mesh, abstract.params[:1]), kept
    begin = jax.jit(
        learner.initial_state,
        out_shardings=jax.tree.map(lambda x: x.sharding, forms.plain),
    )
    step = Stepping(
        own=[island_step(inner) for inner in inners],
        outer=outer,
        meet=outer.meet,
        arrive=outer.arrive,
        share=outer.share,
        islands=islands,
        compile_meetings=compiled_once(outer.meet, outer.arrive, outer.share, given=given),
        outer_bytes=bytes_per_device(kept),
    )
    return Program(
        init=lambda key: forms.adopt(begin(key)),
        step=step,
        params=forms.params,
        place=lambda batch: place_rows(mesh, batch),
        mesh=mesh,
        abstract=abstract,
        portable=forms.portable,
        adopt=forms.adopt,
        saved=forms.saved,
    )
