"""From counts of n-grams to probabilities: add-k, Jelinek-Mercer, modified Kneser-Ney.

The idea: all three are one recursion over orders,

    p_m(w | h) = alpha_m(h w) + gamma_m(h) p_{m-1}(w | h without its oldest token),

where p_0 is uniform over the vocabulary. They differ only in alpha and gamma; add-k also
goes straight from the longest context to p_0. So a method fills two arrays for each order,
and nothing that comes later needs to know the method. A context that was never seen is
skipped.

Contexts are the nodes of a tree that is read backwards from the latest token: the parent of
a context is the context without its oldest token. An n-gram is a node and a word. So a
lookup searches for one integer in the range of one node, and any size of vocabulary fits.

Sources: Chen and Goodman 1999 (modified Kneser-Ney, its discounts); Heafield et al. 2013
(adjusted counts); Jelinek and Mercer 1980, with weights by EM on the training text, where
each occurrence is left out when its own probability is computed.

Shapes: M distinct n-grams, n order, G distinct grams of one order, H nodes of one depth.
"""

from typing import NamedTuple

import numpy as np

# These are used where Chen and Goodman's formula gives no valid discounts, as KenLM does
# with --discount_fallback.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
EM_ROUNDS, EM_TOLERANCE = 1000, 1e-7  # EM stops when no weight changes by more


class Level(NamedTuple):
    """The distinct m-grams of one order m, and their contexts: nodes of depth m - 1."""

    parents_H: np.ndarray  # each node's parent, a node of the depth before; sorted
    labels_H: np.ndarray  # the oldest token of each node; ascending within a parent
    nodes_G: np.ndarray  # each gram's node; sorted
    words_G: np.ndarray  # each gram's last token; ascending within a node
    counts_G: np.ndarray  # each gram's occurrences, int64
    alone_G: np.ndarray  # the occurrences at the beginning of a text, int64
    gram_M: np.ndarray  # the gram in which each distinct n-gram ends; -1: it is shorter


def build_levels(grams_Mn: np.ndarray, counts_M: np.ndarray, pad: int) -> list[Level]:
    """Return the grams of orders 1 to n that end the distinct n-grams.

    In an n-gram, `pad` stands for each token before the beginning of the text.
    """
    order, base = grams_Mn.shape[1], np.int64(pad + 1)
    words_M = grams_Mn[:, -1].astype(np.int64)
    node_M = np.zeros(len(grams_Mn), np.int64)
    parents_H, labels_H = np.zeros(1, np.int64), np.zeros(1, np.int64)
    levels = []
    for depth in range(order):
        here_M = node_M >= 0
        if depth:
            label_M = grams_Mn[:, order - 1 - depth].astype(np.int64)
            here_M &= label_M != pad
            pairs, node = np.unique(
                node_M[here_M] * base + label_M[here_M], return_inverse=True
            )
            parents_H, labels_H = np.divmod(pairs, base)
            node_M = np.full(len(grams_Mn), -1)
            node_M[here_M] = node
        pairs, gram = np.unique(
            node_M[here_M] * base + words_M[here_M], return_inverse=True
        )
        gram_M = np.full(len(grams_Mn), -1)
        gram_M[here_M] = gram
        further = grams_Mn[:, order - 2 - depth] if depth + 1 < order else None
        ends_M = here_M & (further == pad) if further is not None else np.zeros_like(here_M)
        levels.append(
            Level(
                parents_H, labels_H, *np.divmod(pairs, base),
                total(gram_M[here_M], counts_M[here_M], len(pairs)),
                total(gram_M[ends_M], counts_M[ends_M], len(pairs)),
                gram_M,
            )
        )  # fmt: skip
    return levels


def total(index: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Add up int64 values by index; exact below 2**53."""
    return np.bincount(index, values, size).astype(np.int64)


def adjusted_counts(levels: list[Level], order: int) -> np.ndarray:
    """Return the Kneser-Ney counts of the grams of one order, int64_G.

    The count of a gram of the highest order is the number of its occurrences. The count of
    a shorter gram is the number of different tokens that stand before it, plus its
    occurrences at the beginning of a text.
    """
    level = levels[order - 1]
    if order == len(levels):
        return level.counts_G
    longer = levels[order]
    # Each distinct longer gram adds one to the gram that is left without its oldest token.
    at_M = longer.gram_M >= 0
    suffix = np.zeros(len(longer.words_G), np.int64)
    suffix[longer.gram_M[at_M]] = level.gram_M[at_M]
    ones = np.ones(len(suffix))
    return total(suffix, ones, len(level.words_G)) + level.alone_G


def discounts(counts_G: np.ndarray) -> np.ndarray:
    """Return D_1, D_2, D_3+ (Chen and Goodman 1999, eq. 26) from the counts of counts.

    Returns the fallback if a discount is below 0 or above the count that it lowers.
    """
    n = [np.count_nonzero(counts_G == k) for k in range(5)]
    if all(n[1:4]):
        y = n[1] / (n[1] + 2 * n[2])
        found = np.array([k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)])
        if ((found >= 0) & (found <= (1, 2, 3))).all():
            return found
    return np.array(FALLBACK_DISCOUNTS)


def kneser_ney(levels: list[Level]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return alpha_G and gamma_H of each order, interpolated, with three discounts."""
    tables = []
    for order, level in enumerate(levels, 1):
        counts_G = adjusted_counts(levels, order)
        taken_G = np.concatenate([[0.0], discounts(counts_G)])[np.minimum(counts_G, 3)]
        totals_H = np.bincount(level.nodes_G, counts_G, len(level.labels_H))
        freed_H = np.bincount(level.nodes_G, taken_G, len(level.labels_H))
        # Only the root can have no grams, and only if there is no text at all.
        gamma_H = np.divide(freed_H, totals_H, np.ones(len(freed_H)), where=totals_H > 0)
        tables.append(((counts_G - taken_G) / totals_H[level.nodes_G], gamma_H))
    return tables


def add_k(levels: list[Level], k: float, vocab_size: int):
    """Return alpha_G and gamma_H of each order, for a recursion straight to p_0."""
    tables = []
    for level in levels:
        seen_H = np.bincount(level.nodes_G, level.counts_G, len(level.labels_H))
        totals_H = seen_H + k * vocab_size
        alpha_G = level.counts_G / totals_H[level.nodes_G]
        tables.append((alpha_G, k * vocab_size / totals_H))
    return tables


def jelinek_mercer(levels: list[Level], weights: np.ndarray):
    """Return alpha_G and gamma_H of each order; each order has one weight."""
    tables = []
    for level, weight in zip(levels, weights, strict=True):
        totals_H = np.bincount(level.nodes_G, level.counts_G, len(level.labels_H))
        alpha_G = weight * level.counts_G / totals_H[level.nodes_G]
        tables.append((alpha_G, np.full(len(totals_H), 1 - weight)))
    return tables


def deleted_weights(
    levels: list[Level], counts_M: np.ndarray, vocab_size: int
) -> np.ndarray:
    """Return the weight of each order that makes the training text likeliest, by EM.

    Each occurrence is left out when its own probability is computed. Otherwise the highest
    order would get all the weight. An order whose context is then unseen is skipped.
    """
    num_grams = len(counts_M)
    # For each order: relative frequencies without the occurrence itself, and whether the
    # context remains.
    left_out = []
    for level in levels:
        totals_H = np.bincount(level.nodes_G, level.counts_G, len(level.labels_H))
        there_M = level.gram_M >= 0
        gram_M = level.gram_M[there_M]
        others = totals_H[level.nodes_G[gram_M]] - 1
        there_M[there_M] = others > 0
        q_M = np.zeros(num_grams)
        q_M[there_M] = ((level.counts_G[gram_M] - 1) / np.maximum(others, 1))[others > 0]
        left_out.append((q_M, there_M))
    weights = np.full(len(levels), 0.5)
    for _ in range(EM_ROUNDS):
        # E-step, first half: the probability of each n-gram, from the lowest order up, and
        # the shares of it that come from the order's own frequency and from lower orders.
        p_M = np.full(num_grams, 1 / vocab_size)
        chosen, passed = [], []
        for (q_M, there_M), weight in zip(left_out, weights, strict=True):
            own_M = np.where(there_M, weight * q_M, 0.0)
            lower_M = np.where(there_M, 1 - weight, 1.0) * p_M
            p_M = own_M + lower_M
            chosen.append(own_M / p_M)
            passed.append(lower_M / p_M)
        # Second half, from the highest order down: the occurrences that reach an order. The
        # M-step makes its weight the share of them that the order explains itself.
        reached_M, new = counts_M.astype(np.float64), []
        for share_M, rest_M, (_, there_M) in zip(
            chosen[::-1], passed[::-1], left_out[::-1], strict=True
        ):
            met = reached_M[there_M].sum()
            new.insert(0, (reached_M * share_M).sum() / met if met else 0.0)
            reached_M = reached_M * rest_M
        change, weights = np.abs(np.array(new) - weights).max(), np.array(new)
        if change < EM_TOLERANCE:
            break
    return weights
