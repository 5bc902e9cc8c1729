"""Rows of pairs: how a source and a target text lie in a row.

A row of seq_len + 1 tokens is [source, END, padding to source_len][END, target, END,
padding]. Padding is END_ID as well, because no text contains it. The segment id is 1 for
the target and its two marks and 0 elsewhere. So only the tokens of the target are counted
as targets, by the same rule as in rows of documents.
"""

import collections
import hashlib
import itertools
import sys
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from lm.data.cleaning.clean import clean
from lm.data.rows.packing import Row, SplitRows, Texts
from lm.data.sources.pairs import Pair, PairCorpus
from lm.vocabulary import END_ID


def pair_splits(
    corpus: PairCorpus, source_len: int, seq_len: int
) -> tuple[Texts, SplitRows]:
    """Return two functions: split -> its texts, and (tokenizer, split) -> its rows.

    Ask for the rows of training first: each split leaves out the sources of earlier ones.
    """
    seen: set[bytes] = set()

    def texts(split: str) -> Iterator[str]:
        return itertools.chain.from_iterable(corpus.pairs(split))

    def rows(tokenizer: Tokenizer, split: str) -> Iterator[Row]:
        pairs = tqdm(corpus.pairs(split), f"prepare {split}", unit=" pairs")
        cleaned = ((clean(source), clean(target)) for source, target in pairs)
        unique = deduplicate_sources(cleaned, seen)
        count: collections.Counter = collections.Counter()
        yield from pair_rows(tokenizer, unique, source_len, seq_len, count)
        if count["left out"]:
            tqdm.write(
                f"{count['left out']} of {count['pairs']} {split} pairs are longer than a "
                "row and are left out; data.source_len and data.seq_len say how long it is",
                file=sys.stderr,
            )

    return texts, rows


def deduplicate_sources(pairs: Iterable[Pair], seen: set[bytes]) -> Iterator[Pair]:
    """Yield the first pair of each new source; drop pairs with an empty text."""
    for source, target in pairs:
        digest = hashlib.blake2b(source.encode(), digest_size=8).digest()
        if digest not in seen and source.strip() and target.strip():
            seen.add(digest)
            yield source, target


def pair_rows(
    tokenizer: Tokenizer,
    pairs: Iterable[Pair],
    source_len: int,
    seq_len: int,
    count: collections.Counter,
) -> Iterator[Row]:
    """Lay out each pair in a row; leave out, and count, the pairs that are too long."""
    pairs = iter(pairs)
    while batch := list(itertools.islice(pairs, 1024)):
        encoded = tokenizer.encode_batch_fast([text for pair in batch for text in pair])
        ids = [encoding.ids for encoding in encoded]
        for source, target in zip(ids[::2], ids[1::2], strict=True):
            count["pairs"] += 1
            if len(source) >= source_len or len(target) + 1 > seq_len - source_len:
                count["left out"] += 1
                continue
            yield pair_row(source, target, source_len, seq_len)


def pair_row(source: list[int], target: list[int], source_len: int, seq_len: int) -> Row:
    tokens = np.full(seq_len + 1, END_ID, np.int32)
    segments = np.zeros(seq_len + 1, np.int32)
    tokens[: len(source)] = source
    tokens[source_len + 1 : source_len + 1 + len(target)] = target
    segments[source_len : source_len + len(target) + 2] = 1
    return tokens, segments


def encode_sources(tokenizer: Tokenizer, texts: list[str], source_len: int) -> np.ndarray:
    """Return source_BS of texts; ValueError for a text longer than `source_len` allows."""
    source_BS = np.full((len(texts), source_len), END_ID, np.int32)
    for row, text in enumerate(texts):
        ids = tokenizer.encode(text).ids
        if len(ids) >= source_len:
            raise ValueError(
                f"the source {text[:40]!r} has {len(ids)} tokens, and the model reads at "
                f"most {source_len - 1} (data.source_len less the end mark); shorten it"
            )
        source_BS[row, : len(ids)] = ids
    return source_BS


def split_rows(tokens_RT: np.ndarray, source_len: int) -> Iterator[tuple[list, list]]:
    """Yield the ids of source and target of each row, without marks and padding."""
    for row in tokens_RT.tolist():
        yield until_end(row[:source_len]), until_end(row[source_len + 1 :])


def until_end(ids: list[int]) -> list[int]:
    return ids[: ids.index(END_ID)] if END_ID in ids else ids
