"""Change a state between the Task's own form and the form of a pipeline, and back.

In the Task's own form, the ordinary state, each layer may have arrays of its own. The
stacked state of a pipeline has one array for all layers, [L, ...], in the order of the
devices, so that it can be split over the stages.

The path of a leaf in one state tells its path in the other. Two agreements make that so:

  with the Task       The parameters of layer i are params["layers"][i]. Stacked, they are
                      params["scanned_layers"] (lm.task.Stages).
  with the optimizer  Its state of a parameter lies under the path of the parameter. An
                      optimizer that treats stacked layers one by one has two parts
                      (lm.optim.per_layer): "outside_layers", its state of the outer
                      parameters, and "each_layer", its states of all layers, stacked. In
                      the latter a layer has the name "layers".

Examples: opt/outside_layers/mu/embedding comes from opt/mu/embedding. If layer i is at
place p, then place p of opt/each_layer/mu/layers/kernel comes from opt/mu/layers/i/kernel.
A value that belongs to no parameter, such as a count of steps, is the same in every layer.
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

Path = tuple  # keys of jax.tree_util


class Stacking(NamedTuple):
    init: Callable[[Key], TrainState]
    specs: TrainState  # the PartitionSpec of every leaf of the stacked state
    saved: TrainState  # the shapes of the ordinary state
    portable: Callable[[TrainState], TrainState]  # stacked -> ordinary
    adopt: Callable[[TrainState], TrainState]  # ordinary -> stacked


def build_stacking(learner: Learner, order: np.ndarray) -> Stacking:
    """Return the Stacking with the layers in this order.

    Raises ValueError if the optimizer's state cannot be stacked.
    """
    stacked_task = learner.task._replace(
        init=lambda key: stack_params(learner.task.init(key), order)
    )
    stacked_learner = learner._replace(task=stacked_task)
    saved = jax.eval_shape(learner.initial_state, jax.random.key(0))
    shapes = jax.eval_shape(stacked_learner.initial_state, jax.random.key(0))
    if STACK in saved.params:  # the Task stacks its layers too, in the model's order
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
    """Reorder the layers of a tree in which they are stacked."""
    return jax.tree.map_with_path(lambda path, x: x[order] if is_stacked(path) else x, tree)


def ordinary_path(path: Path, layer: int) -> Path:
    """Return the path, in the ordinary state, of one layer's part of a stacked leaf."""
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
    """Raise ValueError if a leaf of one state has no counterpart in the other."""
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
