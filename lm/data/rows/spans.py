"""Span corruption for encoder-decoders: documents become pairs (Raffel et al. 2020, 3.1.4).

Runs of tokens are taken out of a piece of text. The source is the piece with a sentinel in
place of each run; the target is the sentinels, each followed by its run:

  text    the  cat sat  on  the mat  today
  source  the  <0>      on  the <1>
  target  <0>  cat sat  <1> mat  today

T5 ends the target with one more sentinel; here the end mark of the target does that.

A sentinel is the token of a byte that no UTF-8 text contains. There are 13 such bytes, so
the vocabulary need not grow, and a piece has at most 13 runs.

The rows on disk are one corruption of each piece, which evaluation uses. Training draws
another in each epoch: source and target together are the text, so it is put together and
corrupted anew, as a function of (seed, row, epoch). Rows with weights keep the corruption
on disk, because a row stores the weights of its targets alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from lm.data.rows.augment import span_mask
from lm.data.rows.packing import Row
from lm.data.tokenizer import ALPHABET
from lm.vocabulary import END_ID

NOT_IN_TEXT = [*range(0xFF, 0xF4, -1), 0xC1, 0xC0]  # bytes that UTF-8 does not use
# The byte-level alphabet writes these bytes as the characters of the same numbers.
SENTINELS = np.array([1 + ALPHABET.index(chr(byte)) for byte in NOT_IN_TEXT], np.int32)


@dataclass
class SpansConfig:
    # share of a piece's tokens that are taken out
    rate: float = field(default=0.15, metadata={"above": 0, "below": 1})
    # mean number of tokens in a run that is taken out
    mean_span: float = field(default=3.0, metadata={"at_least": 1})


def corrupted(
    config: SpansConfig, length: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return source and target of a text: numbers of its tokens, and ~s for sentinel s."""
    mask = span_mask(length, config.rate, config.mean_span, rng)
    first = mask & ~np.concatenate([[False], mask[:-1]])  # of each run
    run, number = np.cumsum(first) - 1, np.arange(length)
    source = np.where(mask, ~run, number)[~mask | first]
    before = np.flatnonzero(first)
    target = np.insert(number, before, ~run[before])[np.insert(mask, before, True)]
    return source, target


def longest_piece(config: SpansConfig, seq_len: int, source_len: int) -> int:
    """Return the tokens of the longest text that fits; ValueError for too many runs."""
    rng = np.random.default_rng(0)
    for length in range(seq_len, 1, -1):
        source, target = corrupted(config, length, rng)  # their lengths are not random
        if len(source) < source_len and len(target) < seq_len - source_len:
            break
    else:
        raise ValueError(
            f"data.source_len {source_len} of data.seq_len {seq_len} has no room for a "
            f"text of 2 tokens and its target; give more of both"
        )
    if (runs := np.count_nonzero(source < 0)) > len(SENTINELS):
        raise ValueError(
            f"a text of {length} tokens, the longest in a row of data.seq_len {seq_len}, "
            f"has {runs} runs taken out, and there are {len(SENTINELS)} sentinels; raise "
            "data.spans.mean_span, or lower data.spans.rate or data.seq_len"
        )
    return length


def span_rows(
    config: SpansConfig, documents: Iterable[np.ndarray], seq_len: int, source_len: int
) -> Iterator[Row]:
    """Cut documents, which have end marks, into pieces, and corrupt each."""
    longest, count = longest_piece(config, seq_len, source_len), 0
    for document in documents:
        text = document[1:-1]
        for start in range(0, len(text) - 1, longest):
            rng = np.random.default_rng(count)
            piece = text[start : start + longest]
            if len(piece) > 1:
                yield span_row(config, piece, seq_len, source_len, rng)
            count += 1


def span_row(
    config: SpansConfig,
    text: np.ndarray,
    seq_len: int,
    source_len: int,
    rng: np.random.Generator,
) -> Row:
    """Lay out a text as lm/data/rows/pairs.py lays out a pair; text is ids, or TOKENs."""
    source, target = corrupted(config, len(text), rng)
    row = np.zeros(seq_len + 1, text.dtype)
    segments = np.zeros(seq_len + 1, np.int32)
    segments[source_len : source_len + len(target) + 2] = 1
    plain = text.dtype.names is None
    if not plain:
        row["document"], row["weight"] = text["document"][0], 1.0
    for start, entries in ((0, source), (source_len + 1, target)):
        # A sentinel has the weight of the first token of its run, which follows it.
        of_text = np.where(entries < 0, np.roll(entries, -1), entries)
        tokens = text[np.maximum(of_text, 0)].copy()
        ids = tokens if plain else tokens["id"]
        ids[entries < 0] = SENTINELS[~entries[entries < 0]]
        row[start : start + len(entries)] = tokens
    return row, segments


def text_of(row: np.ndarray, source_len: int) -> np.ndarray:
    """Put the text of a row of ids together again."""
    source, target = (
        part[: int(np.argmax(part == END_ID))]
        for part in (row[:source_len], np.append(row[source_len + 1 :], END_ID))
    )
    kept, taken = (
        np.split(part, np.flatnonzero(np.isin(part, SENTINELS)))
        for part in (source, target)
    )
    runs = zip(taken[1:], kept[1:], strict=True)
    return np.concatenate([kept[0], *(x[1:] for both in runs for x in both)])


def another(
    config: SpansConfig,
    source_len: int,
    row: np.ndarray,
    seed: int,
    number: int,
    epoch: int,
) -> np.ndarray:
    """Return a row of ids corrupted anew; its segments, and so its targets, stay."""
    rng = np.random.default_rng((seed, number, epoch))
    text = text_of(row, source_len)
    return span_row(config, text, len(row) - 1, source_len, rng)[0]
