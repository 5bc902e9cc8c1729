"""Between the Task's ordinary tree and one with its layers stacked in the order of devices.

The parameters and all that mirrors them in an optimizer's state go over. Which leaf comes
from which is found once, from shapes and paths, and checked by shape; then both directions
are the same list read from either side.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jax.tree_util import DictKey, SequenceKey, keystr

from parallel.program import STAGE, Key, Learner, Params, TrainState

# The name under which the optimizers look for a stack (lm.optim.per_layer).
STACK = "scanned_layers"


SAME, STACK_OF, REORDERED, COPIES = "same", "stack of", "reordered", "copies"


class Source(NamedTuple):
    """How a leaf of the stacked tree comes from the ordinary one."""

    kind: str  # the leaf itself | a stack of one for each layer | the ordinary tree's stack
    # in another order | a copy for each layer of what exists once (a count of steps)
    leaves: tuple[int, ...]  # of the ordinary tree; STACK_OF: in the order of the devices

    @property
    def stacked(self) -> bool:
        return self.kind != SAME


class Stacking(NamedTuple):
    init: Callable[[Key], TrainState]
    specs: TrainState  # the PartitionSpec of every leaf of the stacked state
    saved: TrainState  # the shapes of the ordinary one
    portable: Callable[[TrainState], TrainState]  # stacked -> ordinary
    adopt: Callable[[TrainState], TrainState]  # ordinary -> stacked


def build_stacking(learner: Learner, order: np.ndarray) -> Stacking:
    """Stack the layers in this order; ValueError if the optimizer's state does not go."""
    stages = learner.stages

    def stack(params: Params) -> Params:
        outer, layers = stages.split(params)
        return outer | {STACK: jax.tree.map(lambda x: x[order], layers)}

    stacking_learner = learner._replace(init=lambda key: stack(learner.init(key)))
    saved = jax.eval_shape(learner.initial_state, jax.random.key(0))
    shapes = jax.eval_shape(stacking_learner.initial_state, jax.random.key(0))
    param_sources = sources_of_params(stages, saved.params, order)
    opt_sources = sources_of_opt(learner, saved, shapes, param_sources)

    def convert(state: TrainState, change: Callable, like: TrainState) -> TrainState:
        return state._replace(
            params=change(state.params, param_sources, like.params, order),
            opt=change(state.opt, opt_sources, like.opt, order),
        )

    def specs(tree, sources: list[Source]):
        names = [P(STAGE) if source.stacked else P() for source in sources]
        return jax.tree.structure(tree).unflatten(names)

    return Stacking(
        init=stacking_learner.initial_state,
        specs=jax.tree.map(lambda _: P(), shapes)._replace(
            params=specs(shapes.params, param_sources), opt=specs(shapes.opt, opt_sources)
        ),
        saved=saved,
        portable=lambda state: convert(state, unstack_leaves, saved),
        adopt=lambda state: convert(state, stack_leaves, shapes),
    )


def stack_leaves(tree, sources: list[Source], like, order: np.ndarray):
    """Make the leaves of the stacked tree from those of the ordinary one."""
    ordinary = jax.tree.leaves(tree)
    make = {
        SAME: lambda x: x,
        STACK_OF: lambda *xs: jnp.stack(xs),
        REORDERED: lambda x: x[order],
        COPIES: lambda x: jnp.broadcast_to(x, (len(order), *x.shape)),
    }
    made = [make[kind](*(ordinary[i] for i in leaves)) for kind, leaves in sources]
    return jax.tree.structure(like).unflatten(made)


def unstack_leaves(tree, sources: list[Source], like, order: np.ndarray):
    """Make the leaves of the ordinary tree from those of the stacked one."""
    structure = jax.tree.structure(like)
    found: list[Any] = [None] * structure.num_leaves
    for x, (kind, leaves) in zip(jax.tree.leaves(tree), sources, strict=True):
        if kind == STACK_OF:
            for place, leaf in enumerate(leaves):
                found[leaf] = x[place]
        elif kind == REORDERED:
            found[leaves[0]] = x[np.argsort(order)]
        else:
            found[leaves[0]] = x if kind == SAME else x[0]
    return structure.unflatten(found)


def sources_of_params(stages, ordinary: Params, order: np.ndarray) -> list[Source]:
    """Split a tree of numbers, to see where each goes."""
    structure = jax.tree.structure(ordinary)
    numbers = structure.unflatten(jnp.arange(structure.num_leaves))
    outer, layers = stages.split(numbers)

    def one(path: tuple, number: jax.Array) -> Source:
        if number.ndim:
            return Source(STACK_OF, tuple(int(n) for n in np.asarray(number)[order]))
        kind = REORDERED if path[0] == DictKey(STACK) else SAME
        return Source(kind, (int(number),))

    paths = jax.tree.leaves_with_path(outer | {STACK: layers})
    return [one(path, number) for path, number in paths]


def sources_of_opt(
    learner: Learner, saved: TrainState, shapes: TrainState, param_sources: list[Source]
) -> list[Source]:
    """Find the sources of the optimizer's state; ValueError where one is unclear."""
    stacked = stacked_leaves(learner, shapes)
    if jax.tree.structure(saved.opt) == jax.tree.structure(shapes.opt):
        return [Source(REORDERED if s else SAME, (i,)) for i, s in enumerate(stacked)]
    ordinary = jax.tree.leaves_with_path(saved.opt)
    numbers = {path: i for i, (path, _) in enumerate(ordinary)}
    mirrors = paths_of_params(saved.params, shapes.params, param_sources)

    def one(path: tuple, x: jax.ShapeDtypeStruct, is_stacked: bool) -> Source:
        cut = next((i for i in range(len(path)) if path[i:] in mirrors), len(path))
        ends = mirrors.get(path[cut:], [()])
        shape = x.shape[1:] if is_stacked else x.shape
        found = {
            tuple(numbers[start + end] for end in ends)
            for start in starts(path[:cut], is_stacked)
            if all(start + end in numbers for end in ends)
        }
        found = {leaves for leaves in found if ordinary[leaves[0]][1].shape == shape}
        if len(found) != 1 or (len(ends) > 1 and not is_stacked):
            raise ValueError(
                f"the optimizer's state at {keystr(path)}, {x.shape}, has no clear "
                "counterpart outside a pipeline; choose another optimizer, or a strategy "
                "without the axis stage"
            )
        kind = (STACK_OF if cut < len(path) else COPIES) if is_stacked else SAME
        return Source(kind, found.pop())

    leaves = jax.tree.leaves_with_path(shapes.opt)
    return [one(path, x, s) for (path, x), s in zip(leaves, stacked, strict=True)]


def paths_of_params(
    ordinary: Params, stacked: Params, sources: list[Source]
) -> dict[tuple, list[tuple]]:
    """Map a parameter's path in the stacked tree to its paths in the ordinary one."""
    paths = [path for path, _ in jax.tree.leaves_with_path(ordinary)]
    found = {}
    for (path, _), source in zip(jax.tree.leaves_with_path(stacked), sources, strict=True):
        found[path] = [paths[leaf] for leaf in source.leaves]
        if source.stacked:  # as per_layer names it
            found[DictKey("layers"), *path[1:]] = found[path]
    return found


def starts(path: tuple, is_stacked: bool) -> list[tuple]:
    """The path, and what it is without the place in per_layer's (rest, stack)."""
    place = SequenceKey(int(is_stacked))
    return [path] + [
        path[:i] + path[i + 1 :] for i, entry in enumerate(path) if entry == place
    ]


def stacked_leaves(learner: Learner, shapes: TrainState) -> list[bool]:
    """Tell which leaves of the optimizer's state grow with the number of layers."""

    def doubled(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((2 * x.shape[0], *x.shape[1:]), x.dtype)

    taller = shapes.params | {STACK: jax.tree.map(doubled, shapes.params[STACK])}
    taller = jax.eval_shape(learner.optimizer.init, taller)
    return [
        b.shape == (2 * a.shape[0], *a.shape[1:]) if a.shape else False
        for a, b in zip(jax.tree.leaves(shapes.opt), jax.tree.leaves(taller), strict=True)
    ]
