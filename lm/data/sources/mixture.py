"""A mixture: several corpora as one.

The documents of the sources follow one another in each split, and the key of a document is
the label of its source. So all that groups documents by their key works on sources: strata,
which are drawn from at rates of their own (lm/data/rows/strata.py), and the partition
`dictionary`. Each source holds out documents by its own rules.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from lm.data.sources.config import SourceConfig
from lm.data.sources.corpus import SHIFTED, SHIFTED_CHARACTERS, Corpus, Document, head


def mixed_corpus(
    sources: Sequence[SourceConfig], opened: Callable[[SourceConfig], Corpus]
) -> Corpus:
    """Open all sources by `opened`; errors name the source that they are of."""
    corpora: dict[str, Corpus] = {}
    for source in sources:
        with naming(source.label):
            corpora[source.label] = opened(source)

    def documents(split: str) -> Iterator[Document]:
        having = [label for label, each in corpora.items() if split in each.splits]
        for label in having:
            with naming(label):
                found = corpora[label].documents(split)
                if split == "shifted":
                    # Only so many characters are read: a part of them from each source.
                    found = head(found, SHIFTED_CHARACTERS // len(having))
                yield from (document._replace(key=label) for document in found)

    # The weights are left out: they decide the order of the rows, not the rows.
    identity = [[label, corpus.identity] for label, corpus in corpora.items()]
    has = {split for corpus in corpora.values() for split in corpus.splits}
    splits = tuple(split for split in SHIFTED if split in has)
    return Corpus({"source": "mixture", "sources": identity}, documents, splits)


@contextlib.contextmanager
def naming(label: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"data.sources {label!r}: {error}") from None


def documents_of(
    labels: Sequence[str], documents: Iterable[Document]
) -> list[tuple[str, int]]:
    """Count the documents of each source, which come in the order of the sources."""
    found = {
        label: sum(1 for _ in same)
        for label, same in itertools.groupby(documents, lambda each: each.key)
    }
    return [(label, found.get(label, 0)) for label in labels]


def check_sources(sources: dict[str, list[tuple[str, int]]]) -> None:
    """Raise ValueError for a source without training documents after cleaning."""
    for label, left in sources.get("train", ()):
        if not left:
            raise ValueError(
                f"data.sources {label!r}: no training document is left after cleaning; "
                "leave the source out, or change data.stages"
            )
