"""A Corpus: where documents come from.

A corpus has the splits "train" and "validation". It may also have "shifted", held-out text
of another kind than the training text.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple


class Document(NamedTuple):
    text: str
    # The file, and the number inside it where it holds several: "os.py", "part.jsonl#12".
    name: str
    key: str = ""  # a natural group of documents: the folder, the dataset


class Corpus(NamedTuple):
    identity: dict[str, object]  # all that decides the text; part of the fingerprint
    documents: Callable[[str], Iterator[Document]]  # split -> its documents
    splits: tuple[str, ...] = ("train", "validation")

    def texts(self, split: str) -> Iterator[str]:
        return (document.text for document in self.documents(split))


SHIFTED = ("train", "validation", "shifted")
