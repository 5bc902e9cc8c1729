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


class Source(NamedTuple):
    """Where a leaf of the stacked tree comes from: leaves of the ordinary one."""

    leaves: tuple[int, ...]  # one, or one for each layer in the order of the devices
    stacked: bool  # the leaf has the layers as its first dim


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
    opt_sources = sources_of_opt(learner, saved, shapes, param_sources, len(order))

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

    def one(source: Source, shape) -> jax.Array:
        if len(source.leaves) > 1:
            return jnp.stack([ordinary[i] for i in source.leaves])
        x = ordinary[source.leaves[0]]
        if not source.stacked:
            return x
        # The layers' count of steps is stacked where theirs is one number.
        return x[order] if x.shape == shape.shape else jnp.broadcast_to(x, shape.shape)

    shapes, structure = jax.tree.flatten(like)
    return structure.unflatten(map(one, sources, shapes))


def unstack_leaves(tree, sources: list[Source], like, order: np.ndarray):
    """Make the leaves of the ordinary tree from those of the stacked one."""
    shapes, structure = jax.tree.flatten(like)
    found = [None] * len(shapes)
    for x, source in zip(jax.tree.leaves(tree), sources, strict=True):
        if len(source.leaves) > 1 or x.shape[1:] == shapes[source.leaves[0]].shape:
            for place, leaf in enumerate(source.leaves):
                found[leaf] = x[place] if found[leaf] is None else found[leaf]
        else:
            found[source.leaves[0]] = x[np.argsort(order)] if source.stacked else x
    return structure.unflatten(found)


def sources_of_params(stages, ordinary: Params, order: np.ndarray) -> list[Source]:
    """Split a tree of numbers, to see where each goes."""
    structure = jax.tree.structure(ordinary)
    numbers = structure.unflatten(jnp.arange(structure.num_leaves))
    outer, layers = stages.split(numbers)

    def one(path: tuple, number: jax.Array) -> Source:
        stacked = path[0] == DictKey(STACK)
        places = np.asarray(number)[order] if number.ndim else [number]
        return Source(tuple(int(place) for place in places), stacked)

    paths = jax.tree.leaves_with_path(outer | {STACK: layers})
    return [one(path, number) for path, number in paths]


def sources_of_opt(
    learner: Learner,
    saved: TrainState,
    shapes: TrainState,
    param_sources: list[Source],
    num_layers: int,
) -> list[Source]:
    """Find where each leaf of the optimizer's state comes from; ValueError if it is unclear."""
    stacked = stacked_leaves(learner, shapes)
    ordinary = {path: i for i, (path, _) in enumerate(jax.tree.leaves_with_path(saved.opt))}
    ordinary_shapes = [x.shape for x in jax.tree.leaves(saved.opt)]
    param_paths = [path for path, _ in jax.tree.leaves_with_path(saved.params)]
    mirrors = {}  # path inside the state of what mirrors a parameter -> paths it is from
    for (path, _), source in zip(
        jax.tree.leaves_with_path(shapes.params), param_sources, strict=True
    ):
        mirrors[path] = [param_paths[leaf] for leaf in source.leaves]
        if source.stacked:  # as per_layer names it
            mirrors[DictKey("layers"), *path[1:]] = mirrors[path]

    def one(path: tuple, x: Any, is_stacked: bool) -> Source:
        cut = next((i for i in range(len(path)) if path[i:] in mirrors), len(path))
        ends = mirrors[path[cut:]] if cut < len(path) else [path[cut:]]
        if jax.tree.structure(saved.opt) == jax.tree.structure(shapes.opt):
            cut, ends = len(path), [()]  # scanned already
        found = {
            tuple(ordinary[start + end] for end in ends)
            for start in starts(path[:cut], is_stacked)
            if all(start + end in ordinary for end in ends)
        }
        found = {
            leaves
            for leaves in found
            if ordinary_shapes[leaves[0]] in (x.shape, x.shape[1:] if is_stacked else None)
        }
        if len(found) != 1:
            raise ValueError(
                f"the optimizer's state at {keystr(path)}, {x.shape}, has no clear "
                "counterpart outside a pipeline; choose another optimizer, or a strategy "
                "without the axis stage"
            )
        return Source(found.pop(), is_stacked)

    leaves = jax.tree.leaves_with_path(shapes.opt)
    return [one(path, x, s) for (path, x), s in zip(leaves, stacked, strict=True)]


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
