"""Packing: documents of any length -> rows of one length.

A document of n tokens has n - 1 targets. A long document is cut into pieces that overlap by
one token, so that each target stands in exactly one row. Pieces shorter than a row share
rows, each with its own segment id. Each goes into the first open row with room for it
(first fit: Coffman et al. 1984).

A document is an array of ids, or of TOKENs, which carry more than the id. Packing looks
only at lengths, and a row has the type of the documents in it.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer

OPEN_ROWS = 512  # rows that first fit can choose from; bounds time and memory

# A token, its weight in the loss, and the number of its document in the split.
TOKEN = np.dtype([("id", np.int32), ("weight", np.float32), ("document", np.int32)])

Row = tuple[np.ndarray, np.ndarray]  # tokens, segments (0: padding), each [seq_len + 1]
Texts = Callable[[str], Iterable[str]]  # split -> all its texts
SplitRows = Callable[[Tokenizer, str], Iterable[Row]]  # (tokenizer, split) -> its rows


def pieces(tokens: np.ndarray, row_len: int) -> Iterator[np.ndarray]:
    """Cut into pieces of at most `row_len` tokens that overlap by one token."""
    for start in range(0, len(tokens) - 1, row_len - 1):
        yield tokens[start : start + row_len]


def first_fit(documents: Iterable[np.ndarray], seq_len: int) -> Iterator[Row]:
    """Pack each piece into the first open row with room for it."""
    row_len, documents = seq_len + 1, iter(documents)
    first = list(itertools.islice(documents, 1))
    rows = np.zeros((OPEN_ROWS, row_len), first[0].dtype if first else np.int32)
    row_segments = np.zeros((OPEN_ROWS, row_len), np.int32)
    free = np.full(OPEN_ROWS, row_len)
    count = np.zeros(OPEN_ROWS, np.int32)

    def take(slot: int) -> Row:
        tokens, segments = rows[slot].copy(), row_segments[slot].copy()
        rows[slot] = np.zeros((), rows.dtype)
        row_segments[slot], free[slot], count[slot] = 0, row_len, 0
        return tokens, segments

    for document in itertools.chain(first, documents):
        for piece in pieces(document, row_len):
            fits = free >= len(piece)
            if not fits.any():
                fullest = int(np.argmin(free))
                yield take(fullest)
                slot = fullest
            else:
                slot = int(np.argmax(fits))
            start = row_len - free[slot]
            count[slot] += 1
            rows[slot, start : start + len(piece)] = piece
            row_segments[slot, start : start + len(piece)] = count[slot]
            free[slot] -= len(piece)
            if free[slot] < 2:  # no room for a token and its target
                yield take(slot)
    for slot in np.flatnonzero(count):
        yield take(int(slot))


def one_each(documents: Iterable[np.ndarray], seq_len: int) -> Iterator[Row]:
    """Give each piece a row of its own, and fill the row up with padding."""
    for document in documents:
        for piece in pieces(document, seq_len + 1):
            padding = seq_len + 1 - len(piece)
            tokens = np.concatenate([piece, np.zeros(padding, piece.dtype)])
            yield tokens, (np.arange(seq_len + 1) < len(piece)).astype(np.int32)


def concatenate(documents: Iterable[np.ndarray], seq_len: int) -> Iterator[Row]:
    """Cut the stream of all documents into rows, as GPT-2's training did.

    A row has one segment even if documents end inside it, so attention needs only the
    causal mask. The last tokens, if they do not fill a row, are dropped.
    """
    row_len = seq_len + 1
    segments = np.ones(row_len, np.int32)
    buffer: list[np.ndarray] = []
    size = 0
    for document in documents:
        # The end mark of one document is the start mark of the next.
        buffer.append(document[1:] if size else document)
        size += len(buffer[-1])
        if size >= row_len:
            stream = np.concatenate(buffer)
            end = (size - 1) // seq_len * seq_len
            for start in range(0, end, seq_len):
                yield stream[start : start + row_len], segments
            buffer, size = [stream[end:]], size - end


PACKINGS = {"first_fit": first_fit, "concat": concatenate, "none": one_each}
