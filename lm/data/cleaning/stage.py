"""A Stage of cleaning: what is done to documents between their source and their rows.

A stage has up to three parts. `sketch` makes something small of each document, on any core.
`decide` sees the sketches of all documents, in the order of the documents, and gives one
verdict for each. `apply` drops, changes or weighs a document, knowing its verdict. A stage
that looks at one document at a time has only `apply`; its verdict is None.

Documents are numbered in one fixed order: those of training, then of validation, then of
the shifted split, each in the order of their source.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lm.data.sources.corpus import Document


class Finding(NamedTuple):
    document: str  # Document.name
    kind: str  # "near_duplicate", "mojibake", "gibberish", ...
    score: float  # higher: surer, or worse
    reason: str  # in words, with the numbers that decided


class Copy(NamedTuple):
    """The verdict on a document that repeats an earlier one.

    Where the earlier one is a training document and this one is held out, it is a leak, and
    data.leakage says what becomes of it.
    """

    first: int  # place of the earlier document among those that `decide` was given
    name: str  # Document.name of the earlier one
    similarity: float  # share of the two texts that is equal, 0 to 1


Applied = tuple[Document | None, list[Finding]]  # the document, or None if it is dropped


class Stage(NamedTuple):
    config: type  # its dataclass; DataConfig has a field of this type, named as the stage
    # (config, document, verdict) -> the document or None, and what was found or changed
    apply: Callable[[Any, Document, Any], Applied]
    # (config, document) -> what `decide` needs; it is pickled
    sketch: Callable[[Any, Document], Any] | None = None
    # (config, sketches) -> a verdict for each; the sketches may be on disk, so keep no more
    # of them in memory than is needed
    decide: Callable[[Any, Sequence[Any]], Sequence[Any]] | None = None
    # whether documents that are held out go through it too; else `decide` is not given them
    held_out: bool = True
    follows: tuple[str, ...] = ()  # stages that must come earlier where they are chosen
