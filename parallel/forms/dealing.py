"""Deal whole matrices to devices, so that each is updated by one device alone.

Some optimizers need a whole matrix: Muon orthogonalises it, LAMB takes its norm. ZeRO cuts
a matrix into parts, and then every device gathers it and does the same work. Here each
device owns whole matrices: their gradients are summed at the owner, the owner keeps the
optimizer's state of them and computes the update, and the results are gathered (Jordan et
al. 2024 share out the work of Muon in this way).

The matrices inside layers (Task.hidden) that have the same shape [a, b] become one array
[K, a, b], split over the devices along K. A layer of a scanned stack counts by itself. So
that the degree N divides K, zeros fill it up: a device works on ceil(matrices / N) of each
shape, at most one more of a shape than an even share. All other leaves stay as they are.

In the dealt form of the parameters those arrays are params["whole_matrices"], under names
such as "each_64x32". An optimizer that treats layers one by one (lm.optim.per_layer) keeps
its state of an array under the same name, and there one matrix has the name "layers". A
value that belongs to no parameter, such as a count of steps, is the same for all matrices.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey

from parallel.forms.fragments import subtree
from parallel.pipeline.stacking import EACH, LAYERS, OUTSIDE, is_stacked
from parallel.program import Learner, Params, TrainState

MATRICES = "whole_matrices"
NAME = re.compile(r"each_\d+x\d+")

Path = tuple  # keys of jax.tree_util


class Place(NamedTuple):
    """Where the matrices of one leaf lie in the array of their shape."""

    name: str  # of the array
    rows: slice | int  # an int: the leaf is one matrix, without a dim for layers


class Form(NamedTuple):
    """Another form of a state's parameters, in which the optimizer runs."""

    learner: Learner  # whose optimizer runs in the other form
    to: Callable[[Params], Params]
    back: Callable[[Params], Params]
    portable: Callable[[TrainState], TrainState]
    adopt: Callable[[TrainState], TrainState]


def same(tree):
    return tree


def usual(learner: Learner) -> Form:
    """Return the form in which nothing is changed."""
    return Form(learner, same, same, same, same)


def is_dealt(path: Path) -> bool:
    return position(path) is not None


def position(path: Path) -> int | None:
    """Return where the name of an array of matrices stands in a path, or None."""
    keys = [entry.key if isinstance(entry, DictKey) else "" for entry in path]
    return next((i for i, key in enumerate(keys) if NAME.fullmatch(str(key))), None)


def places_of(params: Params, hidden: tuple[str, ...]) -> dict[Path, Place]:
    """Give each matrix inside layers its place; raise ValueError if there are none."""
    places: dict[Path, Place] = {}
    filled: dict[str, int] = {}
    for path, x in jax.tree.leaves_with_path(params):
        num, *shape = x.shape if is_stacked(path) else (1, *x.shape)
        if len(shape) != 2 or path[0].key not in hidden:
            continue
        name = f"each_{shape[0]}x{shape[1]}"
        first = filled.get(name, 0)
        filled[name] = first + num
        rows = slice(first, first + num) if is_stacked(path) else first
        places[path] = Place(name, rows)
    if not places:
        raise ValueError(
            "parallel.strategy='zero1_whole' deals the matrices inside a network's layers "
            "to devices, but this model has none; choose zero1"
        )
    return places


def as_optimizers_see(path: Path) -> Path:
    """Return the path that an optimizer sees, to which one layer of a stack is shown."""
    return (DictKey(LAYERS), *path[1:]) if is_stacked(path) else path


def stem(path: Path) -> Path:
    """Return the path without the names of the parts of an optimizer's state."""
    return tuple(e for e in path if e not in (DictKey(OUTSIDE), DictKey(EACH)))


class Matrices(NamedTuple):
    """The matrices of a model, dealt over `degree` devices."""

    places: dict[Path, Place]
    degree: int
    params: Params  # the shapes, in the usual form

    def matrix_of(self, path: Path) -> tuple[Path, Path] | None:
        """Return the stem of a leaf of matrices, and their path among the parameters.

        The leaf may lie in an optimizer's state, under the path of a parameter. None: it
        does not belong to matrices.
        """
        for known in self.places:
            end = as_optimizers_see(known)
            if path[-len(known) :] in (known, end):
                return stem(path[: -len(known)]), known
        return None

    def joined(self, name: str, parts: dict[Path, jax.Array]) -> jax.Array:
        """Make the array of a shape of its parts, and fill it up with zeros."""
        arrays = [
            parts[path] if isinstance(place.rows, slice) else parts[path][None]
            for path, place in self.places.items()
            if place.name == name
        ]
        missing = -sum(len(x) for x in arrays) % self.degree
        zeros = jnp.zeros((missing, *arrays[0].shape[1:]), arrays[0].dtype)
        return jnp.concatenate([*arrays, zeros])

    def deal(self, params: Params) -> Params:
        leaves = jax.tree.leaves_with_path(params)
        rest = subtree((path, x) for path, x in leaves if path not in self.places)
        names = sorted({place.name for place in self.places.values()})
        return rest | {MATRICES: {name: self.joined(name, dict(leaves)) for name in names}}

    def gather(self, dealt: Params) -> Params:
        rest = dict(jax.tree.leaves_with_path(dealt))

        def one(path: Path, _) -> jax.Array:
            if path not in self.places:
                return rest[path]
            place = self.places[path]
            return dealt[MATRICES][place.name][place.rows]

        return jax.tree.map_with_path(one, self.params)

    def portable(self, opt: optax.OptState, like: optax.OptState) -> optax.OptState:
        """Make the usual form of an optimizer's state."""
        found, arrays = by_stem(opt), {}
        for path, x in jax.tree.leaves_with_path(opt):
            if is_dealt(path):
                before, name, of_matrix = dealt_stem(path)
                arrays |= {(before, name): x} if of_matrix else {}

        def one(path: Path, shape: jax.ShapeDtypeStruct) -> jax.Array:
            if (at := self.matrix_of(path)) is not None:
                before, known = at
                name, rows = self.places[known]
                return arrays[before, name][rows]
            return jnp.broadcast_to(found.get(path, found.get(stem(path))), shape.shape)

        return jax.tree.map_with_path(one, like)

    def adopt(self, opt: optax.OptState, like: optax.OptState) -> optax.OptState:
        """Undo `portable`."""
        found, parts = by_stem(opt), {}
        for path, x in jax.tree.leaves_with_path(opt):
            if (at := self.matrix_of(path)) is not None:
                before, known = at
                parts.setdefault(before, {})[known] = x

        def one(path: Path, shape: jax.ShapeDtypeStruct) -> jax.Array:
            if not is_dealt(path):
                return found.get(path, found.get(stem(path)))
            before, name, of_matrix = dealt_stem(path)
            if of_matrix:
                return self.joined(name, parts[before])
            return jnp.broadcast_to(found[before], shape.shape)

        return jax.tree.map_with_path(one, like)


def dealt_stem(path: Path) -> tuple[Path, str, bool]:
    """Return the stem of a dealt leaf, the name of its array, and whether it is theirs.

    A leaf that is not theirs is a value that belongs to no parameter.
    """
    at = position(path)
    before, name, inner = path[:at], path[at].key, path[at + 1 :]
    if before[-1:] == (DictKey(MATRICES),):
        return stem(before[:-1]), name, True
    of_matrix = inner[-1:] == (DictKey(LAYERS),)
    return stem(before + (inner[:-1] if of_matrix else inner)), name, of_matrix


def by_stem(opt: optax.OptState) -> dict[Path, jax.Array]:
    """Find a state's leaves by their paths, those outside of stacks by their stems too."""
    leaves = dict(jax.tree.leaves_with_path(opt))
    outside = {
        stem(path): x
        for path, x in leaves.items()
        if DictKey(EACH) not in path and not is_dealt(path)
    }
    return outside | leaves


def whole_matrices(learner: Learner, degree: int) -> Form:
    """Return the form in which the optimizer sees arrays of whole matrices.

    Raises ValueError if the model has no matrices inside layers.
    """
    shapes = jax.eval_shape(learner.task.init, jax.random.key(0))
    matrices = Matrices(places_of(shapes, learner.task.hidden), degree, shapes)
    tx = learner.optimizer
    dealt = learner._replace(
        optimizer=tx._replace(init=lambda params: tx.init(matrices.deal(params))),
        measure=lambda grads: learner.measure(matrices.gather(grads)),
    )
    usual_opt = jax.eval_shape(tx.init, shapes)
    dealt_opt = jax.eval_shape(dealt.optimizer.init, shapes)
    return Form(
        learner=dealt,
        to=matrices.deal,
        back=matrices.gather,
        portable=lambda s: s._replace(opt=matrices.portable(s.opt, usual_opt)),
        adopt=lambda s: s._replace(opt=matrices.adopt(s.opt, dealt_opt)),
    )


def fill(params: Params, hidden: tuple[str, ...], degree: int) -> int:
    """Return the number of zeros that fill up the arrays of all shapes."""
    ends: dict[str, int] = {}
    sizes: dict[str, int] = {}
    leaves = dict(jax.tree.leaves_with_path(params))
    for path, (name, rows) in places_of(params, hidden).items():
        ends[name] = rows.stop if isinstance(rows, slice) else rows + 1
        sizes[name] = math.prod(leaves[path].shape[-2:])
    return sum((-num % degree) * sizes[name] for name, num in ends.items())
