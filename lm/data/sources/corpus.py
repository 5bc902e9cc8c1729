"""A Corpus: where documents come from.

A corpus has the splits "train" and "validation". It may also have "shifted", held-out text
of another kind than the training text.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple


class Document(NamedTuple):
    text: str
    # The file, and the number inside it where it holds several: "os.py", "part.jsonl#12".
    name: str
    key: str = ""  # a natural group of documents: the folder, the dataset
    weight: float = 1.0  # of its tokens in the loss; evaluation is never weighted
    # (first character, end, weight) of spans whose loss is weighted by this too; 0: masked
    spans: tuple[tuple[int, int, float], ...] = ()


class Corpus(NamedTuple):
    identity: dict[str, object]  # all that decides the text; part of the fingerprint
    documents: Callable[[str], Iterator[Document]]  # split -> its documents
    splits: tuple[str, ...] = ("train", "validation")

    def texts(self, split: str) -> Iterator[str]:
        return (document.text for document in self.documents(split))


SHIFTED = ("train", "validation", "shifted")
SHIFTED_CHARACTERS = 300_000  # at most this much of the shifted text is used


def head(documents: Iterable[Document], characters: int) -> Iterator[Document]:
    """Yield the first documents, at most so many characters; the last loses its end."""
    for document in documents:
        if text := document.text[:characters]:
            yield document._replace(text=text)
        characters -= len(text)
        if characters <= 0:
            return
