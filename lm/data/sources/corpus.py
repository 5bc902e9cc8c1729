"""A Corpus: where documents come from.

A corpus has the splits "train" and "validation". It may also have "shifted", held-out text
of another kind than the training text.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple


class Corpus(NamedTuple):
    identity: dict[str, object]  # all that decides the text; part of the fingerprint
    documents: Callable[[str], Iterator[str]]  # split -> its documents
    splits: tuple[str, ...] = ("train", "validation")


SHIFTED = ("train", "validation", "shifted")
