"""Weights of tokens: of their document, of spans of it, and by importance.

The loss of a token is multiplied by its weight (lm/losses.py). Only the proportion of
weights matters, because the weighted loss is divided by the sum of the weights.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from tokenizers import Tokenizer

from lm.data.rows.packing import TOKEN
from lm.data.sources.corpus import Document
from lm.data.tokenizer import encode_documents, split_text


def encode(tokenizer: Tokenizer, documents: Iterable[Document]) -> Iterator[np.ndarray]:
    """Yield the tokens of each document, TOKEN[n], with its weights and its number.

    The documents are numbered from 0.
    """
    held: collections.deque[Document] = collections.deque()

    def texts() -> Iterator[str]:
        for document in documents:
            held.append(document)
            yield document.text

    for number, ids in enumerate(encode_documents(tokenizer, texts())):
        tokens = np.empty(len(ids), TOKEN)
        tokens["id"], tokens["document"] = ids, number
        tokens["weight"] = token_weights(tokenizer, held.popleft())
        yield tokens


def token_weights(tokenizer: Tokenizer, document: Document) -> np.ndarray | float:
    """Return the weight of each token and of both end marks; a number if all are equal.

    A token that lies in several spans, wholly or in part, has the smallest of their weights
    times that of the document.
    """
    if not document.spans:
        return document.weight
    offsets, start = [], 0
    for part in split_text(document.text):  # as the document is encoded
        found = np.array(tokenizer.encode(part).offsets, np.int64).reshape(-1, 2)
        offsets.append(found + start)
        start += len(part)
    starts, ends = np.concatenate(offsets).T
    factors = np.full(len(starts), np.inf)
    for first, end, weight in document.spans:
        inside = (starts < end) & (ends > first)
        factors[inside] = np.minimum(factors[inside], weight)
    factors[np.isinf(factors)] = 1.0
    return document.weight * np.array([1.0, *factors, 1.0])


def importance(
    sizes: Mapping[str, float], target_shares: Mapping[str, float]
) -> dict[str, float]:
    """Return the weight of each group, its share of the target over its share of `sizes`.

    Under these weights the mean over the corpus is the mean over a text in which the groups
    have the shares of the target (importance sampling). A group that the target does not
    name has the weight 0. ValueError for a share that is negative or not finite, for shares
    that do not sum to 1, and for a group that the corpus does not have.
    """
    if bad := {k: x for k, x in target_shares.items() if not 0 <= x < np.inf}:
        raise ValueError(f"shares must be numbers of at least 0; found {bad}")
    whole, total = sum(sizes.values()), sum(target_shares.values())
    if abs(total - 1) > 1e-6:
        raise ValueError(
            f"the shares {dict(target_shares)} sum to {total:g}; they must sum to 1"
        )
    if missing := [k for k in target_shares if not sizes.get(k)]:
        raise ValueError(
            f"the corpus has no text of the group {missing[0]!r}; it has "
            f"{', '.join(map(repr, sorted(sizes)))}"
        )
    return {
        group: target_shares.get(group, 0.0) / (size / whole) if size else 0.0
        for group, size in sizes.items()
    }


def effective_size(weight: float, squares: float) -> float:
    """Return how many examples of equal weight are worth as much; 0 if all weights are 0.

    It is the square of the sum of the weights over the sum of their squares (Kish, Survey
    Sampling, 1965).
    """
    return weight**2 / squares if squares else 0.0
