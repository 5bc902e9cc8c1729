"""N-gram language models of orders 1 to 5, counted and evaluated on any devices.

The idea: each target with the n - 1 tokens before it is a tuple of integers.
parallel/counting/table.py counts such tuples. `estimate` turns the distinct tuples and
their counts into tables (lm/models/ngram/smoothing.py), and the Task looks targets up in
these tables. An n-gram never crosses the beginning of a segment: a mark stands for each
token before it, and a target there is predicted from the context that it has.

Source: Jurafsky and Martin, Speech and Language Processing, 3.

Shapes: B batch, T time, N lookups, n order, V vocabulary, C cache length, M distinct
n-grams, G grams of one order, H contexts of one length.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.losses import weight_sums
from lm.models.ngram.smoothing import (
    Level,
    add_k,
    build_levels,
    deleted_weights,
    jelinek_mercer,
    kneser_ney,
)
from lm.models.ngram.tables import probabilities, searchable
from lm.models.setting import Setting
from lm.task import Batch, Key, Params, Sums, Task, targets_mask

SMOOTHINGS = ("kneser_ney", "jelinek_mercer", "add_k")
MAX_ORDER = 5


@dataclass
class NgramConfig:
    # n; a token is predicted from the n - 1 tokens before it
    order: int = field(default=3, metadata={"at_least": 1, "at_most": MAX_ORDER})
    # how rare n-grams get a probability; kneser_ney: modified and interpolated
    smoothing: str = field(default="kneser_ney", metadata={"choices": SMOOTHINGS})
    # added to each count
    k: float = field(
        default=0.01, metadata={"above": 0, "only": {"model.smoothing": ("add_k",)}}
    )

    reads: ClassVar[str] = "documents"
    trained_by: ClassVar[str] = "counts"
    traces: ClassVar[bool] = False
    augments: ClassVar[bool] = False

    def validate(self, setting: Setting) -> None:
        """Raise ValueError for types in which counts are not exact."""
        if setting.compute != jnp.float32:
            raise ValueError(
                f"precision.compute is {jnp.dtype(setting.compute).name}; a model of "
                "counts computes in float32"
            )

    def task(self, setting: Setting) -> Task:
        return ngram_task(self, setting.vocab_size)

    def describe(self) -> str:
        return f"{self.order}-gram, {self.smoothing.replace('_', ' ')}"


def grams(batch: Batch, order: int, vocab_size: int) -> tuple[jax.Array, jax.Array]:
    """Return the n-gram of each target, int32[B * T, n], and if it counts, bool[B * T]."""
    windows_BTn = windows(batch, order, vocab_size)[:, 1:]
    return windows_BTn.reshape(-1, order), targets_mask(batch).reshape(-1)


def windows(batch: Batch, width: int, vocab_size: int) -> jax.Array:
    """Return the last `width` tokens up to each place, int32[B, T + 1, width].

    `vocab_size`, which is no token, stands for each place before the segment.
    """
    back = jnp.arange(width - 1, -1, -1)
    places = jnp.arange(batch["tokens"].shape[1])[:, None] - back
    tokens, segments = (batch[name][:, jnp.maximum(places, 0)] for name in
                        ("tokens", "segments"))  # fmt: skip
    inside = (places >= 0) & (segments == batch["segments"][..., None])
    return jnp.where(inside, tokens, vocab_size)


def first_epoch(batch: Batch, step: jax.Array, batch_size: int, num_rows: int) -> Batch:
    """Empty the rows that come after the first epoch of `num_rows` rows.

    A text that is counted twice looks surer than it is: no n-gram would occur once, and
    Kneser-Ney computes its discounts from the n-grams that occur once.
    """
    new_B = step * batch_size + batch["row"] < num_rows
    return batch | {"segments": jnp.where(new_B[:, None], batch["segments"], 0)}


def counted(
    config: NgramConfig, vocab_size: int, batch_size: int, num_rows: int
) -> Callable[[Batch, jax.Array], tuple[jax.Array, jax.Array]]:
    """Return the function (batch, step) -> its n-grams, and which of them count."""

    def tuples(batch: Batch, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = first_epoch(batch, step, batch_size, num_rows)
        grams_Nn, valid_N = grams(new, config.order, vocab_size)
        if "weights" in batch:  # all of them 0 or 1: counts are integers
            valid_N &= batch["weights"][:, 1:].reshape(-1) > 0
        return grams_Nn, valid_N

    return tuples


def estimate(
    config: NgramConfig, vocab_size: int, grams_Mn: np.ndarray, counts_M: np.ndarray
) -> Params:
    """Make the parameters of the Task from the distinct n-grams and their counts."""
    levels = build_levels(grams_Mn, counts_M, vocab_size)
    return smooth(config, vocab_size, levels, counts_M)


def smooth(
    config: NgramConfig, vocab_size: int, levels: list[Level], counts_M: np.ndarray
) -> Params:
    """Make the parameters from levels, which may be those of longer n-grams."""
    levels = levels[: config.order]
    if config.smoothing == "kneser_ney":
        tables = kneser_ney(levels)
    elif config.smoothing == "add_k":
        tables = add_k(levels, config.k, vocab_size)
    else:
        weights = deleted_weights(levels, counts_M, vocab_size)
        tables = jelinek_mercer(levels, weights)
    num_parents = [0, *(len(level.labels_H) for level in levels)]
    return [
        searchable(level, *table, num)
        for level, table, num in zip(levels, tables, num_parents, strict=False)
    ]


def ngram_task(config: NgramConfig, vocab_size: int) -> Task:
    """Return the Task that looks targets up in the tables of `estimate`.

    `init` returns the tables of a model that has seen no text. The loss has no gradient:
    the parameters come from counts.
    """
    order, direct = config.order, config.smoothing == "add_k"

    def init(key: Key) -> Params:
        nothing = np.zeros((0, order), np.int32), np.zeros(0, np.int64)
        return estimate(config, vocab_size, *nothing)

    def lookup(params: Params, contexts, words) -> jax.Array:
        return probabilities(params, contexts, words, 1 / vocab_size, direct)

    def loss(params: Params, batch: Batch, key: Key | None) -> tuple[jax.Array, Sums]:
        grams_Nn, valid_N = grams(batch, order, vocab_size)
        p_N = lookup(params, grams_Nn[:, :-1], grams_Nn[:, -1])
        logp_N, weights_N = jnp.log(p_N), None
        if "weights" in batch:
            weights_N = batch["weights"][:, 1:].reshape(-1)
            logp_N *= weights_N
        loss_sum = -jnp.sum(jnp.where(valid_N, logp_N, 0.0))
        tokens = jnp.sum(valid_N, dtype=jnp.float32)
        sums = {"loss": loss_sum, "tokens": tokens} | weight_sums(valid_N, weights_N)
        return loss_sum, sums

    def all_logits(params: Params, contexts_BTn: jax.Array) -> jax.Array:
        """Return logits_BTV, one position at a time: each looks up the whole vocabulary."""

        def one(contexts_Bn: jax.Array) -> jax.Array:
            words_BV = jnp.broadcast_to(
                jnp.arange(vocab_size), (len(contexts_Bn), vocab_size)
            )
            return jnp.log(lookup(params, contexts_Bn, words_BV))

        return jax.lax.map(one, contexts_BTn.swapaxes(0, 1)).swapaxes(0, 1)

    def logits(params: Params, batch: Batch) -> jax.Array:
        return all_logits(params, windows(batch, order - 1, vocab_size)[:, :-1])

    def cache(batch_size: int, length: int) -> jax.Array:
        return jnp.zeros((batch_size, length), jnp.int32)

    def decode(params: Params, tokens_BC: jax.Array, tokens_BT, start_B):
        rows_B1 = jnp.arange(len(start_B))[:, None]
        places_BT = start_B[:, None] + jnp.arange(tokens_BT.shape[1])
        tokens_BC = tokens_BC.at[rows_B1, places_BT].set(tokens_BT)
        back_n = jnp.arange(order - 2, -1, -1)
        places_BTn = places_BT[..., None] - back_n
        contexts = tokens_BC[rows_B1[..., None], jnp.maximum(places_BTn, 0)]
        contexts_BTn = jnp.where(places_BTn >= 0, contexts, vocab_size)
        return all_logits(params, contexts_BTn), tokens_BC

    return Task(init, loss, logits, cache, decode)
