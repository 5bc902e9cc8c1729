"""Pruning: single weights are set to 0 in training, by a link around the optimizer.

`pruned` wraps an optimizer. After each update it sets the weights outside of its mask to 0,
so that neither momentum nor decay brings one back; their gradients do not reach the
optimizer. At the steps of the schedule it takes the mask anew, from the whole matrices.
The wrapper sees what the optimizer sees, so it works under every strategy whose optimizer
sees the parameters under their names.

With `straight_through` the optimizer trains dense weights, which it keeps in its state, and
the parameters are these weights under the mask. The gradient at the parameters goes to the
dense weights as it is, so a pruned weight can grow and come back. Weights outside of the
mask also decay (SR-STE, Zhou et al. 2021, 4.2).

Kinds: magnitude (the smallest weights go), random (a control), n_m (of every `group` inputs
of an output, the `keep` largest stay; Mishra et al. 2021).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.compress.leaves import (
    Leaves,
    Names,
    check_pattern,
    flat,
    is_stacked,
    matrices,
    nested,
)
from lm.compress.ranking import ordered, smallest, smallest_of_each
from lm.task import Params

KINDS = ("none", "magnitude", "random", "n_m")
SCOPES = ("global", "layer")
PRUNES = {"compress.prune.kind": KINDS[1:]}
BY_SHARE = {"compress.prune.kind": ("magnitude", "random")}
THROUGH = {"compress.prune.straight_through": (True,)}
BY_GROUP = {"compress.prune.kind": ("n_m",)}


@dataclass
class PruneConfig:
    # which weights are set to 0: the smallest, any, or all but `keep` in every `group`
    kind: str = field(default="none", metadata={"choices": KINDS})
    # share of the weights that are set to 0
    sparsity: float = field(
        default=0.5, metadata={"above": 0, "below": 1, "only": BY_SHARE}
    )
    # compare the weights of the whole model, or those of each matrix
    scope: str = field(default="global", metadata={"choices": SCOPES, "only": BY_SHARE})
    # weights that stay in a group
    keep: int = field(default=2, metadata={"at_least": 1, "only": BY_GROUP})
    # weights in a group: inputs that lie together, of one output
    group: int = field(default=4, metadata={"at_least": 2, "at_most": 32, "only": BY_GROUP})
    # update at which pruning begins
    begin: int = field(default=1, metadata={"at_least": 1, "only": PRUNES})
    # update at which the sparsity is reached, after a cubic rise; 0: at `begin`
    end: int = field(default=0, metadata={"at_least": 0, "only": BY_SHARE})
    # updates between two prunings in the rise
    every: int = field(default=10, metadata={"at_least": 1, "only": BY_SHARE})
    # keep training pruned weights in the background, so that they can come back
    straight_through: bool = field(default=False, metadata={"only": PRUNES})
    # decay of weights in the background, added to the gradient of the mean loss
    decay: float = field(
        default=2e-4,
        metadata={"at_least": 0, "only": PRUNES | THROUGH},
    )
    # regular expression of the names, inside a layer or outside, of what is pruned
    matrices: str = field(default="kernel$", metadata={"only": PRUNES})

    def validate(self, params: Params, steps: int) -> None:
        """Raise ValueError for what does not fit the parameters, or their shapes."""
        if self.kind == "none":
            return
        if self.end and self.end <= self.begin:
            raise ValueError(
                f"compress.prune.end {self.end} is not after compress.prune.begin "
                f"{self.begin}; set it to 0 to prune at once, or to a later update"
            )
        if (last := max(self.begin, self.end)) > steps:
            raise ValueError(
                f"pruning ends at update {last} (compress.prune.begin {self.begin}, end "
                f"{self.end}), but the run has {steps} steps; change one of them"
            )
        chosen = check_pattern("compress.prune.matrices", self.matrices, params)
        if self.kind == "n_m":
            self.validate_groups(chosen)

    def validate_groups(self, chosen: Leaves) -> None:
        if self.keep >= self.group:
            raise ValueError(
                f"compress.prune.keep {self.keep} is not less than compress.prune.group "
                f"{self.group}, so that nothing is pruned; change one of them"
            )
        for keys, x in chosen.items():
            if x.shape[-2] % self.group:
                raise ValueError(
                    f"compress.prune.group {self.group} does not divide the {x.shape[-2]} "
                    f"inputs of {'/'.join(map(str, keys))}; change it, or leave this "
                    "matrix out by compress.prune.matrices"
                )


class PruneState(NamedTuple):
    count: jax.Array  # int32[], updates
    kept: Params  # bool, true where a weight is not pruned; of the chosen matrices alone
    dense: Params  # the weights in training; () where they are the parameters themselves
    inner: Any


def progress(config: PruneConfig, update: jax.Array) -> jax.Array:
    """Return which part of the sparsity update number `update` reaches, from 0 to 1.

    It rises by a cubic (Zhu and Gupta 2017, 3).
    """
    if not config.end:
        return jnp.where(update >= config.begin, 1.0, 0.0)
    done = (update - config.begin) / (config.end - config.begin)
    return 1 - (1 - jnp.clip(done, 0.0, 1.0)) ** 3


def num_pruned(config: PruneConfig, size: int, part: jax.Array | float) -> jax.Array:
    """Return how many of `size` weights go. The end is exact; float32 is not, for many."""
    whole = round(config.sparsity * size)
    return jnp.where(part >= 1, jnp.uint32(whole), jnp.uint32(part * whole))


def is_due(config: PruneConfig, update: jax.Array) -> jax.Array:
    """Tell whether the mask is taken anew; dense weights in the background ask for it."""
    steady = config.straight_through and (update >= config.begin)
    if not config.end:
        return (update == config.begin) | steady
    since = update - config.begin
    rising = (since >= 0) & (update <= config.end)
    return rising & ((since % config.every == 0) | (update == config.end)) | steady


def kept_weights(
    weights: Leaves, kept: Leaves, config: PruneConfig, part: jax.Array | float
) -> Leaves:
    """Return the new masks of matrices [I, O] and of stacks of them, [L, I, O].

    `part` is that of the sparsity which is reached now. A weight that is not kept already
    counts as smaller than all others.
    """
    if config.kind == "n_m":
        return {
            keys: largest_of_groups(jnp.where(kept[keys], jnp.abs(x), -1.0), config)
            for keys, x in weights.items()
        }
    sizes = magnitudes(weights) if config.kind == "magnitude" else drawn(weights)
    keys_of = {k: jnp.where(kept[k], ordered(x), 0) for k, x in sizes.items()}
    if config.scope == "global":
        total = sum(x.size for x in weights.values())
        gone = smallest(keys_of, num_pruned(config, total, part))
        return {keys: ~x for keys, x in gone.items()}

    def each_layer(keys: Names, x: jax.Array) -> jax.Array:
        stack = x if is_stacked(keys) else x[None]
        gone = smallest_of_each(stack, num_pruned(config, stack[0].size, part))
        return ~gone.reshape(x.shape)

    return {keys: each_layer(keys, x) for keys, x in keys_of.items()}


def magnitudes(weights: Leaves) -> Leaves:
    return {keys: jnp.abs(x) for keys, x in weights.items()}


def drawn(weights: Leaves) -> Leaves:
    """Draw a number for each weight, the same in every call and layout.

    Layers that are stacked draw other numbers than layers by themselves.
    """
    key = jax.random.key(0)
    return {
        keys: jax.random.uniform(jax.random.fold_in(key, index), x.shape)
        for index, (keys, x) in enumerate(weights.items())
    }


def largest_of_groups(x: jax.Array, config: PruneConfig) -> jax.Array:
    """Return true at the `keep` largest of each `group` inputs; of equals, the first."""
    size = config.group
    x_xGMO = x.reshape(*x.shape[:-2], -1, size, x.shape[-1])
    one, other = x_xGMO[..., :, None, :], x_xGMO[..., None, :, :]
    index = jnp.arange(size)
    before = (index[None, :] < index[:, None])[..., None]
    ahead = (other > one) | ((other == one) & before)
    return (jnp.sum(ahead, -2) < config.keep).reshape(x.shape)


def pruned(
    tx: optax.GradientTransformationExtraArgs, config: PruneConfig
) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer `tx` with pruning; see the top of this file.

    The parameters after an update are exactly 0 outside of the mask, and as `tx` has them
    inside of it.
    """
    if config.kind == "none":
        return tx
    chosen = partial(matrices, pattern=config.matrices)

    def init(params: Params) -> PruneState:
        kept = {keys: jnp.ones(x.shape, bool) for keys, x in chosen(params).items()}
        dense = nested(chosen(params)) if config.straight_through else ()
        return PruneState(jnp.int32(0), nested(kept), dense, tx.init(params))

    def update(grads: Params, state: PruneState, params: Params, **told):
        kept, weights = flat(state.kept), chosen(params)
        dense = flat(state.dense) if config.straight_through else weights
        seen = partial(gradient, config, kept, dense)
        grads = replaced(grads, chosen(grads), seen)
        trained = nested(flat(params) | dense)
        updates, inner = tx.update(grads, state.inner, trained, **told)
        moved = {keys: dense[keys] + u for keys, u in chosen(updates).items()}
        count = state.count + 1

        def anew() -> Leaves:
            # Weights in the background compete again with all others.
            able = {k: jnp.ones_like(x) for k, x in kept.items()}
            before = able if config.straight_through else kept
            return kept_weights(moved, before, config, progress(config, count))

        new = jax.lax.cond(is_due(config, count), anew, lambda: kept)

        def step(keys: Names, u: jax.Array) -> jax.Array:
            # p + (-p) is exactly 0. What comes back was 0, and becomes what it is in the
            # background.
            u = jnp.where(kept[keys], u, moved[keys])
            return jnp.where(new[keys], u, -weights[keys])

        updates = replaced(updates, chosen(updates), step)
        background = nested(moved) if config.straight_through else ()
        return updates, PruneState(count, nested(new), background, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def gradient(
    config: PruneConfig, kept: Leaves, dense: Leaves, keys: Names, grad: jax.Array
) -> jax.Array:
    """Return what the optimizer sees of a gradient, in the mask and outside of it."""
    outside = grad + config.decay * dense[keys] if config.straight_through else 0.0
    return jnp.where(kept[keys], grad, outside)


def replaced(
    tree: Params, chosen: Leaves, change: Callable[[Names, jax.Array], jax.Array]
) -> Params:
    return nested(flat(tree) | {keys: change(keys, x) for keys, x in chosen.items()})


def prune_now(params: Params, config: PruneConfig) -> Params:
    """Prune to the full sparsity at once, after training."""
    if config.kind == "none":
        return params
    weights = matrices(params, config.matrices)
    able = {keys: jnp.ones(x.shape, bool) for keys, x in weights.items()}
    kept = kept_weights(weights, able, config, 1.0)
    masked = {keys: jnp.where(kept[keys], x, 0.0) for keys, x in weights.items()}
    return nested(flat(params) | masked)
