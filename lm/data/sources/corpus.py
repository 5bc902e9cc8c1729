"""A Corpus: where documents come from.

It is an identity (all that decides its text, for the cache's fingerprint) and a function
from split ("train", "validation", and "shifted" where it has one: held-out text of another
kind) to an iterator of documents.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple


class Corpus(NamedTuple):
    identity: dict[str, object]
    documents: Callable[[str], Iterator[str]]
    splits: tuple[str, ...] = ("train", "validation")


SHIFTED = ("train", "validation", "shifted")
