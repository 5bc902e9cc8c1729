"""The bigram model with add-k smoothing: the baseline that comes with every corpus."""

import numpy as np
from scipy import sparse

ADD_K = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


def bigram_counts(
    tokens_RT: np.ndarray, segments_RT: np.ndarray, vocab_size: int, block: int = 65536
) -> sparse.csr_array:
    """Count (previous, next) pairs inside segments; rows R are read in blocks."""
    counts = sparse.csr_array((vocab_size, vocab_size), dtype=np.int64)
    for start in range(0, len(tokens_RT), block):
        tokens, segments = (a[start : start + block] for a in (tokens_RT, segments_RT))
        inside = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        pairs = (
            tokens[:, :-1][inside].astype(np.int32),
            tokens[:, 1:][inside].astype(np.int32),
        )
        ones = np.ones(len(pairs[0]), np.int64)
        counts += sparse.coo_array((ones, pairs), counts.shape).tocsr()
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
