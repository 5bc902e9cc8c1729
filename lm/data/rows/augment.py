"""Augmentation: the input of a training row is damaged, its targets are not.

  token_dropout    single tokens are replaced by other tokens of the same row (unigram
                   noising, Xie et al. 2017, 3.2, with the row as the unigram table)
  span_corruption  runs of tokens are replaced by a mask (Raffel et al. 2020, T5, 3.1.4; for
                   causal models, Liu et al. 2022, Forgetful Causal Masking)

A decoder-only model keeps all its targets, so a row teaches as much as before, and each
epoch shows another variant of it. The damage is a pure function of (seed, row, epoch).
Marks between documents and padding stay.

The mask is the token of the byte 0xFF: no UTF-8 text contains it, so the vocabulary need
not grow.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lm.data.tokenizer import ALPHABET
from lm.vocabulary import END_ID

MASK_ID = 1 + ALPHABET.index("ÿ")  # the byte 0xFF
Rng = np.random.Generator


DAMAGED = {"only": {"data.augment.kind": ("token_dropout", "span_corruption")}}


@dataclass
class AugmentConfig:
    # how the input of a training row is damaged, anew in each epoch; none: not at all
    kind: str = field(
        default="none", metadata={"choices": ("none", "token_dropout", "span_corruption")}
    )
    # share of the input's tokens that are replaced
    rate: float = field(default=0.15, metadata={"above": 0, "below": 1} | DAMAGED)
    # mean number of tokens in a replaced run
    mean_span: float = field(
        default=3.0,
        metadata={"at_least": 1, "only": {"data.augment.kind": ("span_corruption",)}},
    )
    # names of the strata (data.sampling.strata) whose rows are damaged, separated by
    # commas; "": all rows
    strata: str = field(
        default="",
        metadata={"only": DAMAGED["only"] | {"data.sampling.strata": ("key", "kind")}},
    )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.strata.split(",")) if self.strata else ()

    def acts_on(self, stratum: str) -> bool:
        return not self.strata or stratum in self.names


def token_dropout(config: AugmentConfig, tokens_T: np.ndarray, rng: Rng) -> np.ndarray:
    chosen_T = (rng.random(len(tokens_T)) < config.rate) & (tokens_T != END_ID)
    others_T = tokens_T[tokens_T != END_ID]
    if not len(others_T):
        return tokens_T
    return np.where(chosen_T, rng.choice(others_T, len(tokens_T)), tokens_T)


def span_corruption(config: AugmentConfig, tokens_T: np.ndarray, rng: Rng) -> np.ndarray:
    mask_T = span_mask(len(tokens_T), config.rate, config.mean_span, rng)
    return np.where(mask_T & (tokens_T != END_ID), MASK_ID, tokens_T)


def span_mask(length: int, rate: float, mean_span: float, rng: Rng) -> np.ndarray:
    """Return bool[length] with runs of true, as T5's `random_spans_noise_mask` does.

    The number of true elements and the number of runs are fixed; both the runs and what
    lies between them are random parts of their totals.
    """
    num_noise = int(np.clip(round(length * rate), 1, length - 1))
    most = min(num_noise, length - num_noise)
    num_spans = int(np.clip(round(num_noise / mean_span), 1, most))

    def parts(total: int) -> np.ndarray:
        cuts = rng.choice(total - 1, num_spans - 1, replace=False) + 1
        return np.diff(np.sort(np.concatenate([[0], cuts, [total]])))

    runs = np.stack([parts(length - num_noise), parts(num_noise)], 1).ravel()
    return np.repeat(np.tile([False, True], num_spans), runs)


KINDS: dict[str, Callable[[AugmentConfig, np.ndarray, Rng], np.ndarray]] = {
    "token_dropout": token_dropout,
    "span_corruption": span_corruption,
}


def damaged(
    config: AugmentConfig, tokens_T: np.ndarray, seed: int, row: int, epoch: int
) -> np.ndarray:
    """Return the tokens that the model reads instead of `tokens_T`."""
    rng = np.random.default_rng((seed, row, epoch))
    return KINDS[config.kind](config, tokens_T, rng).astype(tokens_T.dtype)
