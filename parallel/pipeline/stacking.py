"""Between the Task's ordinary state and one with its layers stacked, in device order.

The ordinary state may hold each layer apart; the stacked one has a single array for all
layers, [L, ...], which is split over the stages. Where a leaf of the one lies in the other
is told by its path alone. Two agreements make that so:

  with the Task       the parameters of layer i are params["layers"][i]; stacked they are
                      params["scanned_layers"] (lm.task.Stages)
  with the optimizer  what it keeps of a parameter lies under the parameter's own path. One
                      that looks at stacked layers one by one keeps {"outside_layers": its
                      state of the other parameters, "each_layer": its state of a layer,
                      stacked}, in which the layer is named "layers" (lm.optim.per_layer)

So opt/outside_layers/mu/embedding comes from opt/mu/embedding, and place p of
opt/each_layer/mu/layers/kernel from opt/mu/layers/i/kernel, i being the layer at place p.
What is kept once and not for a parameter, as a count of steps is, each layer has alike.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jax.tree_util import DictKey, keystr

from parallel.program import STAGE, Key, Learner, Params, TrainState

LAYERS, STACK = "layers", "scanned_layers"
OUTSIDE, EACH = "outside_layers", "each_layer"

Path = tuple  # of the keys of jax.tree_util


class Stacking(NamedTuple):
    init: Callable[[Key], TrainState]
    specs: TrainState  # the PartitionSpec of every leaf of the stacked state
    saved: TrainState  # the shapes of the ordinary one
    portable: Callable[[TrainState], TrainState]  # stacked -> ordinary
    adopt: Callable[[TrainState], TrainState]  # ordinary -> stacked


def build_stacking(learner: Learner, order: np.ndarray) -> Stacking:
    """Stack the layers in this order; ValueError if the optimizer's state does not go."""
    stacked_task = learner.task._replace(
        init=lambda key: stack_params(learner.task.init(key), order)
    )
    stacked_learner = learner._replace(task=stacked_task)
    saved = jax.eval_shape(learner.initial_state, jax.random.key(0))
    shapes = jax.eval_shape(stacked_learner.initial_state, jax.random.key(0))
    if STACK in saved.params:  # the ordinary state is a stack too, in the Task's order
        back = np.argsort(order)
        adopt, portable = (lambda s: reorder(s, order)), (lambda s: reorder(s, back))
    else:
        check_names(saved, shapes)
        adopt, portable = (
            lambda state: stack(state, shapes, order),
            lambda state: unstack(state, saved, order),
        )
    return Stacking(
        init=stacked_learner.initial_state,
        specs=jax.tree.map_with_path(
            lambda path, _: P(STAGE) if is_stacked(path) else P(), shapes
        ),
        saved=saved,
        portable=portable,
        adopt=adopt,
    )


def outer_of(params: Params) -> Params:
    """Return the parameters outside the layers."""
    return {name: child for name, child in params.items() if name not in (LAYERS, STACK)}


def stack_params(params: Params, order: np.ndarray) -> Params:
    if STACK in params:
        return reorder(params, order)
    layers = [params[LAYERS][i] for i in order]
    return outer_of(params) | {STACK: jax.tree.map(lambda *xs: jnp.stack(xs), *layers)}


def is_stacked(path: Path) -> bool:
    return DictKey(STACK) in path or DictKey(EACH) in path


def reorder(tree, order: np.ndarray):
    """Reorder the layers of a tree that has them stacked."""
    return jax.tree.map_with_path(lambda path, x: x[order] if is_stacked(path) else x, tree)


def ordinary_path(path: Path, layer: int) -> Path:
    """Return where a stacked leaf's part of this layer lies in the ordinary state."""
    found = []
    for entry in path:
        if entry in (DictKey(OUTSIDE), DictKey(EACH)):
            continue
        if entry in (DictKey(STACK), DictKey(LAYERS)):
            found += [DictKey(LAYERS), DictKey(layer)]
        else:
            found.append(entry)
    return tuple(found)


def stack(state: TrainState, like: TrainState, order: np.ndarray) -> TrainState:
    """Make the stacked state from the ordinary one."""
    ordinary = dict(jax.tree.leaves_with_path(state))

    def one(path: Path, _) -> jax.Array:
        if not is_stacked(path):
            return ordinary[ordinary_path(path, 0)]
        return jnp.stack([ordinary[ordinary_path(path, int(i))] for i in order])

    return jax.tree.map_with_path(one, like)


def unstack(state: TrainState, like: TrainState, order: np.ndarray) -> TrainState:
    """Make the ordinary state from the stacked one."""
    ordinary = {}
    for path, x in jax.tree.leaves_with_path(state):
        if not is_stacked(path):
            ordinary[ordinary_path(path, 0)] = x
            continue
        for place, layer in enumerate(order):
            ordinary[ordinary_path(path, int(layer))] = x[place]
    return jax.tree.map_with_path(lambda path, _: ordinary[path], like)


def check_names(saved: TrainState, shapes: TrainState) -> None:
    """Raise ValueError where a leaf of one state has no counterpart in the other."""
    expected = {path: x.shape for path, x in jax.tree.leaves_with_path(saved)}
    found = {}
    for path, x in jax.tree.leaves_with_path(shapes):
        layers = range(x.shape[0]) if is_stacked(path) else [0]
        shape = x.shape[1:] if is_stacked(path) else x.shape
        found |= {ordinary_path(path, layer): shape for layer in layers}
    for path in found | expected:
        if found.get(path) != expected.get(path):
            raise ValueError(
                f"the optimizer's state at {keystr(path)} is {expected.get(path)}, and "
                f"{found.get(path)} with the layers stacked for a pipeline; choose another "
                "optimizer, or a strategy without the axis stage"
            )
