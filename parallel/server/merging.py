"""Merging what islands moved: how long to wait, what each push weighs, the outer step.

Rules of asynchronous DiLoCo, as pure functions. An island pulls the parameters, takes
several steps by itself, and pushes how far it has moved. A merge is one update of the
shards, made of the pushes that have come.

  delayed Nesterov, steps by speed   Liu et al. 2024 (arXiv 2401.09135), algorithm 3 and 4.2
  quorum, grace window, weights      Douillard et al. 2026 (arXiv 2604.21428)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

WEIGHS = ("tokens", "tokens_per_step")
ROUNDING = 1e-9  # a share of 1/3 of 6 steps is 2 of them, whatever the rounding


@dataclass
class MergeConfig:
    # the fewest pushes that a merge waits for; 1: each push is an update
    quorum: int = field(default=1, metadata={"at_least": 1})
    # how much longer a merge waits for more pushes, as a share of the time that the quorum
    # took
    grace: float = field(default=0.0, metadata={"at_least": 0})
    # weight of a push among those of its merge; tokens: those that it was learnt from;
    # tokens_per_step: tokens, times tokens per step
    weigh: str = field(default="tokens", metadata={"choices": WEIGHS})
    # N of delayed Nesterov: the outer momentum changes once in so many merges; 1: in each,
    # as in diloco
    momentum_every: int = field(default=1, metadata={"at_least": 1})
    # c of delayed Nesterov: share of the momentum that the merges between two changes apply
    activation: float = field(default=0.0, metadata={"at_least": 0})
    # an island takes fewer steps before it pushes, in the proportion of its speed to that
    # of the fastest one
    by_speed: bool = False

    def validate(self, workers: int) -> None:
        """Raise ValueError for fields that do not fit together, or so many workers."""
        if self.quorum > workers:
            raise ValueError(
                f"parallel.merge.quorum {self.quorum} is more than parallel.server.workers "
                f"{workers}, of which each has one push on its way; give at most {workers}"
            )
        if self.grace and self.quorum == workers:
            raise ValueError(
                f"parallel.merge.grace {self.grace} has no effect: a merge waits for "
                f"parallel.merge.quorum {self.quorum} pushes, and there are "
                f"parallel.server.workers {workers}, so no more can come; unset it, or "
                "lower the quorum"
            )
        if self.activation and self.momentum_every == 1:
            raise ValueError(
                f"parallel.merge.activation {self.activation} has no effect where "
                "parallel.merge.momentum_every is 1: there are no merges between two "
                "changes of the momentum; unset it, or give 2 or more"
            )
        if self.activation * self.momentum_every > 1:
            raise ValueError(
                f"parallel.merge.activation {self.activation} is more than "
                f"1 / parallel.merge.momentum_every {self.momentum_every}: the merges "
                "between two changes would apply more than all of the momentum; lower it"
            )


class Delayed(NamedTuple):
    """The state of delayed Nesterov."""

    count: jax.Array  # int32[], updates since the momentum changed
    momentum: optax.Updates
    buffer: optax.Updates  # the sum of the gradients since then


def delayed_nesterov(
    rate: float, decay: float, every: int, activation: float
) -> optax.GradientTransformation:
    """Return SGD whose Nesterov momentum changes once in `every` = N updates.

    Each update of a gradient g moves by -rate (c decay m + g / N). The last of N first
    lets the momentum be m = decay m + (sum of the N gradients) / N, and moves by
    -rate ((1 - c N + c) decay m + g / N). So N equal gradients g move as one step of
    Nesterov's momentum does with g; with N = 1 it is that. c is `activation`.
    """

    def init(params: optax.Params) -> Delayed:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return Delayed(jnp.int32(0), zeros, zeros)

    def update(grads: optax.Updates, state: Delayed, params: optax.Params = None):
        last = state.count + 1 == every
        buffer = jax.tree.map(jnp.add, state.buffer, grads)
        momentum = jax.tree.map(
            lambda m, b: jnp.where(last, decay * m + b / every, m), state.momentum, buffer
        )
        share = jnp.where(last, 1 - activation * every + activation, activation)
        updates = jax.tree.map(
            lambda m, g: -rate * (share * decay * m + g / every), momentum, grads
        )
        buffer = jax.tree.map(lambda b: jnp.where(last, 0, b), buffer)
        return updates, Delayed(jnp.where(last, 0, state.count + 1), momentum, buffer)

    return optax.GradientTransformation(init, update)


def local_steps(
    worker: int, speeds: Mapping[int, float], every: int, by_speed: bool
) -> int:
    """Return how many steps an island takes before it pushes: floor(H v / fastest v).

    `speeds` are the steps a second of those whose speed is known. An island whose speed is
    not known takes H = `every`; each takes one at least.
    """
    if not by_speed or worker not in speeds:
        return every
    share = speeds[worker] / max(speeds.values())
    return max(1, math.floor(every * share + ROUNDING))


def window(began: float, now: float, grace: float) -> float:
    """Return until when a merge waits for more pushes, once it has its quorum.

    `began` is when its islands were given work; the window grows with what that took.
    """
    return now + grace * (now - began)


def weights(tokens: Sequence[float], steps: Sequence[int], weigh: str) -> list[float]:
    """Return the share of each push in its merge; all are 0 if nothing was learnt."""
    counts = [
        n * n / k if weigh == "tokens_per_step" and k else n
        for n, k in zip(tokens, steps, strict=True)
    ]
    total = math.fsum(counts)
    return [count / total if total else 0.0 for count in counts]
