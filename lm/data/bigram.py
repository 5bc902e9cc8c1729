"""The bigram model with add-k smoothing: the baseline that comes with every corpus."""

import pathlib

import numpy as np
from scipy import sparse

from lm.data.rows.shards import read_shards

ADD_K = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
BLOCK = 4096  # rows whose pairs of tokens are counted at once


def bigram_counts(
    tokens: np.ndarray, segments: np.ndarray, vocab_size: int
) -> sparse.csr_array:
    """Count (previous, next) pairs inside the segments of rows, [R, T + 1] each."""
    inside = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    pairs = (
        tokens[:, :-1][inside].astype(np.int32),
        tokens[:, 1:][inside].astype(np.int32),
    )
    ones = np.ones(len(pairs[0]), np.int64)
    return sparse.coo_array((ones, pairs), (vocab_size, vocab_size)).tocsr()


def bigrams_of(folder: pathlib.Path, split: str, meta: dict) -> sparse.csr_array:
    """Count the pairs of tokens in the rows of a split.

    The files are opened anew for each block: the pages of an open one that were read count
    as this process's memory.
    """
    vocab_size = meta["vocab_size"]
    counts = sparse.csr_array((vocab_size, vocab_size), dtype=np.int64)
    for start in range(0, meta[split]["rows"], BLOCK):
        tokens, segments = (
            np.asarray(each[start : start + BLOCK])
            for each in read_shards(folder, split, meta)[:2]
        )
        counts += bigram_counts(tokens, segments, vocab_size)
    return counts


def bigram_loss(train: sparse.csr_array, held_out: sparse.csr_array) -> float:
    """Return the mean negative log likelihood (nats) of held-out pairs.

    It is the smallest over the constants in ADD_K, a choice that favours the baseline.
    """
    previous, following = held_out.nonzero()
    weights = held_out[previous, following]
    pair_counts = train[previous, following]
    context_counts = train.sum(axis=1)[previous]
    vocab_size = train.shape[0]
    losses = [
        -np.average(
            np.log((pair_counts + k) / (context_counts + k * vocab_size)),
            weights=weights,
        )
        for k in ADD_K
    ]
    return float(min(losses))
