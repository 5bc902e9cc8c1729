"""A server shard: some leaves of the parameters and their optimizer state; arithmetic only.

A shard is a state machine without randomness. The same commands in the same order give the
same bits, wherever it runs. So a shard that died comes back from its last snapshot and the
commands after it, and a run can be replayed from its schedule.

An update comes in two commands. `merge` adds up the pushes and returns the square of the
norm of this shard's part. `apply` is told the square of the whole norm and lets the
optimizer act. Between them the caller adds up the squares of all shards, so that clipping
by the global norm is that of one device. The optimizer sees the other shards as one more
leaf, whose norm is theirs: an optimizer that takes a norm over all leaves takes the right
one.

Commands are idempotent: an update that a shard has applied is not applied again.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from parallel.program import Key, Params
from parallel.server.packing import Wire

OTHERS = "leaves_of_other_shards"


class Rules(NamedTuple):
    """What a shard does with pushes and pulls."""

    optimizer: optax.GradientTransformationExtraArgs
    wire: Wire  # of pushes
    compress_pulls: bool
    compensation: float
    seed: int  # of the keys of codecs
    learning_rate: Callable[[Any], jax.Array]


class Push(NamedTuple):
    worker: int
    number: int
    share: float  # its weight among the pushes of the update
    piece: int = 0  # of the number's rows


class Snapshot(NamedTuple):
    update: int  # the last one applied
    changed: int  # the last one that changed the parameters
    params: Params
    opt: Any
    copies: dict[int, Any]  # worker -> the parameters as it has them
    seen: dict[int, int]  # worker -> `changed` when it last pulled


class Pulled(NamedTuple):
    """What a shard sends to a worker."""

    difference: bool  # to the worker's copy, packed; else the parameters
    payload: Any
    version: int


def with_others(tree: Params, value: Any) -> Params:
    return {**tree, OTHERS: jnp.reshape(jnp.asarray(value, jnp.float32), (1,))}


def first_opt(optimizer: optax.GradientTransformation, params: Params) -> Any:
    """Return the optimizer state of a shard at the start of a run."""
    return optimizer.init(with_others(params, 0.0))


def pull_key(seed: int, version: int, worker: int) -> Key:
    key = jax.random.fold_in(jax.random.key(seed), 2**30 + worker)
    return jax.random.fold_in(key, version)


def push_key(seed: int, number: Any, worker: Any) -> Key:
    key = jax.random.fold_in(jax.random.key(seed), 2**29 + worker)
    return jax.random.fold_in(key, number)


class Arithmetic(NamedTuple):
    """The jitted functions of shards, compiled once for all that have the same shapes."""

    rules: Rules
    merge: Callable
    apply: Callable
    difference: Callable


def arithmetic(rules: Rules) -> Arithmetic:
    return Arithmetic(
        rules,
        jax.jit(partial(merge, rules)),
        jax.jit(partial(apply, rules.optimizer)),
        jax.jit(partial(difference, rules.wire)),
    )


class Shard:
    def __init__(self, arithmetic: Arithmetic, snapshot: Snapshot):
        self.rules, self.arithmetic = arithmetic.rules, arithmetic
        update, changed, params, opt, copies, seen = snapshot
        self.update, self.changed = update, changed
        self.params, self.opt = jax.tree.map(jnp.asarray, (params, opt))
        self.copies = {w: jax.tree.map(jnp.asarray, copy) for w, copy in copies.items()}
        self.seen = dict(seen)
        self.merged, self.rate = None, math.nan  # the rate of the last change

    def pull(self, worker: int, whole: bool) -> Pulled | None:
        """Return what is newer than the worker's copy; None if nothing is.

        `whole`: the worker has no copy.
        """
        whole = whole or worker not in self.copies
        if not whole and self.seen[worker] == self.changed:
            return None
        self.seen[worker] = self.changed
        if whole or not self.rules.compress_pulls:
            self.copies[worker] = self.params
            return Pulled(False, jax.device_get(self.params), self.update)
        key = pull_key(self.rules.seed, self.update, worker)
        payload, copy = self.arithmetic.difference(self.params, self.copies[worker], key)
        self.copies[worker] = copy
        return Pulled(True, jax.device_get(payload), self.update)

    def merge(self, update: int, pushes: Sequence[Push], payloads: Sequence[Any]) -> float:
        """Add the pushes up, in their order; return the square of the sum's norm."""
        if update <= self.update:
            return 0.0
        copies = [self.copies[push.worker] for push in pushes]
        numbers = np.array([push.number for push in pushes], np.uint32)
        workers = np.array([push.worker for push in pushes], np.uint32)
        shares = np.array([push.share for push in pushes], np.float32)
        self.merged, square = self.arithmetic.merge(
            self.params, copies, tuple(payloads), numbers, workers, shares
        )
        return float(square)

    def apply(self, update: int, square: float, factor: float, loss: float) -> float:
        """Let the optimizer act on what was merged; return the learning rate.

        square: of the norm over all shards; if it is not finite, nothing changes.
        factor: of the optimizer's update. loss: the mean, which the optimizer is told.
        """
        if update <= self.update:
            return self.rate
        if np.isfinite(square) and np.isfinite(loss):
            self.params, self.opt = self.arithmetic.apply(
                self.params, self.opt, self.merged, square, factor, loss
            )
            self.changed = update
            self.rate = float(self.rules.learning_rate(self.opt))
        self.update, self.merged = update, None
        return self.rate

    def snapshot(self) -> Snapshot:
        held = (self.params, self.opt, self.copies)
        params, opt, copies = jax.device_get(held)
        return Snapshot(self.update, self.changed, params, opt, copies, dict(self.seen))


def merge(
    rules: Rules,
    params: Params,
    copies: Sequence[Params],
    payloads: Sequence[Any],
    numbers: jax.Array,
    workers: jax.Array,
    shares: jax.Array,
) -> tuple[Params, jax.Array]:
    """Sum share x push, in the order given; return the sum and the square of its norm.

    Compensation corrects a gradient g, taken at the worker's copy w', to first order for
    today's parameters w: g + compensation * g * g * (w - w') (Zheng et al. 2017, 4).
    """
    total = None
    for i, (payload, copy) in enumerate(zip(payloads, copies, strict=True)):
        key = push_key(rules.seed, numbers[i], workers[i])
        grads = rules.wire.unpack(payload, params, key)
        if rules.compensation:
            grads = jax.tree.map(
                lambda g, now, then: g + rules.compensation * g * g * (now - then),
                grads,
                params,
                copy,
            )
        share = shares[i]
        part = jax.tree.map(lambda g, share=share: g * share, grads)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    return total, optax.tree.norm(total, squared=True)


def apply(
    optimizer: optax.GradientTransformationExtraArgs,
    params: Params,
    opt: Any,
    grads: Params,
    square: jax.Array,
    factor: jax.Array,
    loss: jax.Array,
) -> tuple[Params, Any]:
    rest = square - optax.tree.norm(grads, squared=True)
    grads = with_others(grads, jnp.sqrt(jnp.maximum(rest, 0.0)))
    whole = with_others(params, 0.0)
    updates, opt = optimizer.update(grads, opt, whole, value=loss)
    del updates[OTHERS]
    updates = jax.tree.map(lambda u: factor * u, updates)
    return optax.apply_updates(params, updates), opt


def difference(wire: Wire, params: Params, copy: Params, key: Key) -> tuple[Any, Params]:
    """Return the packed difference to a worker's copy, and the copy that it will have."""
    payload = wire.pack(jax.tree.map(jnp.subtract, params, copy), key)
    return payload, patched(wire, copy, payload, key)


def patched(wire: Wire, copy: Params, payload: Any, key: Key) -> Params:
    return jax.tree.map(jnp.add, copy, wire.unpack(payload, copy, key))
