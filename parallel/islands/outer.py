"""The meetings of islands: programs of their own (parallel/islands/program.py).

A meeting runs on a part of the devices: one for each part of the parameters. Where a layout
splits them (fsdp, tensor, stages), a device exchanges its own part with the devices that
have the same part on the other islands, so nothing is gathered. Where they are whole on
every device, the first of the island meets, and copies what was agreed to the others. So
the slow links carry each number once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.exchange.transforms import Exchange, grouped
from parallel.islands.submeshes import (
    axes_of,
    each_spec,
    first_along,
    islands_of,
    join,
    one_of_each,
    shaped,
    shard_shapes,
)
from parallel.meetings import (
    Apart,
    Fragment,
    Plan,
    arrive,
    first_fragments,
    first_tally,
    meet,
    share,
)
from parallel.program import SLICE, Learner, Params, TrainState

Change = Callable[[TrainState], tuple[TrainState, Any]]


class Outer:
    """The programs of the meetings, on one device for each part of the parameters."""

    def __init__(
        self, learner: Learner, mesh: Mesh, like: Params, exchange: Exchange, plan: Plan
    ):
        """`like` has the shapes and shardings of an island's parameters."""
        self.plan = plan
        self.specs = jax.tree.map(lambda x: x.sharding.spec, like)
        split = set().union(*map(axes_of, jax.tree.leaves(self.specs)))
        self.mesh = first_along(mesh, split)
        self.islands = islands_of(self.mesh)
        self.one_each = one_of_each(mesh)
        self.each = jax.tree.map(each_spec, self.specs)
        self.local = shard_shapes(like)
        # What an exchange keeps is of one device: [W, ...], or [W, parts, ...] where
        # an island has the parameters in parts.
        parts = tuple(axis for axis in mesh.axis_names if axis in split)
        self.kept = P(SLICE, parts) if parts else P(SLICE)
        # Devices that have different parts of some leaves, and the same of others, must
        # get the same of those, so a codec must not mix them.
        self.exchange = grouped(self.split_alike, exchange) if parts else exchange
        first = partial(first_fragments, exchange=self.exchange, plan=plan)
        self.apart_specs = self.specs_of(jax.eval_shape(first, self.local))
        self.begin = self.jitted(self.first, (self.each,), self.apart_specs)
        indices = range(plan.fragments)
        self.meet = [
            self.changing(self.meeting(learner, i), not plan.overlap) for i in indices
        ]
        self.arrive = [
            self.changing(partial(self.arrival, i)) for i in indices if plan.overlap
        ]
        self.share = [self.changing(self.sharing)] if plan.alone else []

    def split_alike(self, params: Params) -> list[set]:
        """Return the paths of the leaves that are split over the same axes, by the axes."""
        known = dict(jax.tree.leaves_with_path(self.specs))
        groups: dict[tuple[str, ...], set] = {}
        for path, _ in jax.tree.leaves_with_path(params):
            groups.setdefault(tuple(sorted(axes_of(known[path]))), set()).add(path)
        return [groups[axes] for axes in sorted(groups)]

    def specs_of(self, fragments: list[Fragment]) -> Apart:
        """Return the spec of each array that the islands keep; `fragments` are shapes."""
        known = dict(jax.tree.leaves_with_path(self.specs))

        def spec(path: tuple, x: jax.ShapeDtypeStruct) -> P:
            # The outer optimizer's state of a parameter lies under the parameter's path.
            ends = (path[i:] for i in range(len(path)))
            return next((known[end] for end in ends if end in known), P())

        parts = [
            jax.tree.map_with_path(spec, f)._replace(
                comm=jax.tree.map(lambda _: self.kept, f.comm)
            )
            for f in fragments
        ]
        tally = jax.tree.map(lambda _: P(SLICE), first_tally(self.plan.fragments))
        return Apart(parts, tally)

    def jitted(self, function: Callable, in_specs: Any, out_specs: Any, donate=()):
        spread = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            check_vma=False,
        )
        shardings = jax.tree.map(partial(NamedSharding, self.mesh), out_specs)
        return jax.jit(spread, out_shardings=shardings, donate_argnums=donate)

    def of_device(self, apart: Apart, change: Callable) -> Apart:
        """Apply a function to what each device, and each island, has by itself."""
        fragments = [
            f._replace(comm=jax.tree.map(partial(change, len(self.kept)), f.comm))
            for f in apart.fragments
        ]
        return apart._replace(
            fragments=fragments, tally=jax.tree.map(partial(change, 1), apart.tally)
        )

    def first(self, params: Params) -> Apart:
        fragments = first_fragments(shaped(params, self.local), self.exchange, self.plan)
        tally = first_tally(self.plan.fragments)
        return self.of_device(Apart(fragments, tally), with_dims)

    def meeting(self, learner: Learner, index: int) -> Change:
        return lambda state: meet(state, index, self.exchange, self.plan, (SLICE,), learner)

    def arrival(self, index: int, state: TrainState) -> tuple[TrainState, tuple]:
        return arrive(state, index, self.plan), ()

    def sharing(self, state: TrainState) -> tuple[TrainState, tuple]:
        return share(state, self.plan, (SLICE,))

    def changing(self, change: Change, moves: bool = True) -> Callable:
        """Return (step, parameters, Apart) -> (parameters, Apart, what was told).

        Where the parameters do not move, () is returned for them.
        """

        def one(step: jax.Array, params: Params, apart: Apart):
            params = shaped(params, self.local)
            apart = self.of_device(apart, without_dims)
            state, told = change(TrainState(step, params, (), apart, ()))
            params = jax.tree.map(lambda x: x.reshape(x.shape or (1,)), state.params)
            return params if moves else (), self.of_device(state.comm, with_dims), told

        ins = (P(), self.each, self.apart_specs)
        return self.jitted(
            one, ins, (self.each if moves else (), self.apart_specs, P()), donate=2
        )

    def abstract(self, like: Params) -> Apart:
        """Return the shapes of what all islands keep; the tally is an array over them."""
        shapes = jax.eval_shape(self.begin, join(self.mesh, [like]))
        return jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(self.mesh, spec)
            ),
            shapes,
            self.apart_specs,
        )


def with_dims(num: int, x: jax.Array) -> jax.Array:
    return x.reshape((1,) * num + x.shape)


def without_dims(num: int, x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[num:])
