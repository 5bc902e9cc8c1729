"""Corpora of files: plain text, JSON lines and Parquet."""

import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from lm.data.sources.corpus import SHIFTED, Corpus, Document
from lm.data.sources.listing import file_digests, list_files
from lm.data.sources.reading import BadRecord, BadRecords, Piece, text_pieces
from lm.data.sources.records import jsonl_pieces, parquet_pieces
from lm.data.sources.splits import border, place

Read = Callable[[pathlib.Path, BadRecords], Iterator[Piece]]


class Policy(NamedTuple):
    """What the corpora of files have in common besides their files."""

    on_bad_record: str = "stop"  # or "skip"
    cache: pathlib.Path | None = None  # where digests of the files are kept


DEFAULT = Policy()


def text_corpus(
    path: str,
    validation_path: str,
    validation_share: float,
    shifted_path: str = "",
    separator: re.Pattern | None = None,
    policy: Policy = DEFAULT,
) -> Corpus:
    """Read text files, each as one document, or as several with `separator` in between."""
    corpus = files_corpus(
        (path, validation_path, shifted_path),
        validation_share,
        lambda file, bad: text_pieces(file, separator),
        policy,
    )
    pattern = separator.pattern if separator else ""
    return corpus._replace(
        identity=corpus.identity | {"source": "text", "separator": pattern}
    )


def records_corpus(
    source: str,
    path: str,
    validation_path: str,
    validation_share: float,
    text_key: str,
    shifted_path: str = "",
    policy: Policy = DEFAULT,
) -> Corpus:
    """Read files of records with a document under `text_key`; source: jsonl or parquet."""
    read = {"jsonl": jsonl_pieces, "parquet": parquet_pieces}[source]
    corpus = files_corpus(
        (path, validation_path, shifted_path),
        validation_share,
        lambda file, bad: read(file, text_key, bad),
        policy,
    )
    return corpus._replace(identity=corpus.identity | {"source": source, "key": text_key})


jsonl_corpus = functools.partial(records_corpus, "jsonl")
parquet_corpus = functools.partial(records_corpus, "parquet")


def files_corpus(
    paths: tuple[str, str, str], share: float, read: Read, policy: Policy
) -> Corpus:
    """Read files by `read`; paths are those to train on, to validate on and shifted ones.

    Without files to validate on, a hash of each document decides whether it is held out. Of
    a single document, the last part is held out.
    """
    names = ("data.path", "data.validation_path", "data.shifted_path")
    files, held_out, shifted = (
        list_files(name, each) if each or name == names[0] else []
        for name, each in zip(names, paths, strict=True)
    )
    apart = {file.resolve() for file in (*held_out, *shifted)}
    files = [file for file in files if file.resolve() not in apart]
    if not files:
        raise ValueError(f"data.path {paths[0]!r} has only files that are held out")
    told: set[str] = set()

    def pieces(chosen: Sequence[pathlib.Path]) -> Iterator[tuple[pathlib.Path, Piece]]:
        bad = BadRecords(policy.on_bad_record)
        for file in chosen:
            try:
                yield from ((file, piece) for piece in read(file, bad))
            except BadRecord as error:
                bad(error)
        bad.report(told)

    @functools.cache
    def where() -> Border:
        return split_of_texts(lambda: (piece for _, piece in pieces(files)), share)

    def documents(split: str) -> Iterator[Document]:
        chosen = {"train": files, "validation": held_out, "shifted": shifted}[split]
        chosen = chosen or files
        keys, found = keys_of(chosen), pieces(chosen)
        if not held_out and split != "shifted":
            found = one_side(found, where(), split == "validation")
        for file, piece in found:
            yield Document(piece.text, piece.name, keys[file])

    identity = {
        name: identity_of(each, policy)
        for name, each in [
            ("files", files), ("validation_files", held_out), ("shifted_files", shifted)
        ]
    }  # fmt: skip
    identity |= {
        "validation_share": None if held_out else share,
        "on_bad_record": policy.on_bad_record,
    }
    return Corpus(identity, documents, SHIFTED if shifted else SHIFTED[:2])


def keys_of(files: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Return the folder of each file below that which all have in common.

    So a corpus may move.
    """
    common = os.path.commonpath([file.parent for file in files]) if files else ""
    return {file: os.path.relpath(file.parent, common) for file in files}


def identity_of(files: Sequence[pathlib.Path], policy: Policy) -> list[tuple]:
    """Return what decides documents: the text, the key, and the suffix (prose or code)."""
    digests = file_digests(files, policy.cache, BadRecords(policy.on_bad_record))
    told = zip(digests, keys_of(files).items(), strict=True)
    return [(digest, key, file.suffixes) for digest, (file, key) in told]


class Border(NamedTuple):
    """Where held-out text begins."""

    place: int | None  # texts with a place below it are held out
    character: int = 0  # or, if there is only one text, all of it from here on


def split_of_texts(pieces: Callable[[], Iterable[Piece]], share: float) -> Border:
    """Find the border of texts, which are read again where it depends on all of them."""
    found = border((place(piece.text) for piece in pieces() if piece.first), share)
    if found is not None:
        return Border(found)
    length, documents = 0, 0
    for piece in pieces():
        documents += piece.first
        if documents > 1:  # another copy of the same text
            break
        length += len(piece.text)
    return Border(None, max(int(length * (1 - share)), 1))


def one_side(
    found: Iterable[tuple[pathlib.Path, Piece]], border: Border, validation: bool
) -> Iterator[tuple[pathlib.Path, Piece]]:
    """Keep what lies on the side of training or of validation."""
    held_out, begin = False, 0
    for file, piece in found:
        if piece.first:
            held_out, begin = (
                border.place is not None and place(piece.text) < border.place,
                0,
            )
        if border.place is None:
            end = line_before(piece.text, border.character - begin)
            begin += len(piece.text)
            text = piece.text[end:] if validation else piece.text[:end]
            if text:
                yield file, Piece(text, piece.name, piece.first)
        elif held_out == validation:
            yield file, piece


def line_before(text: str, end: int) -> int:
    """Return the last begin of a line up to `end`; `end` if there is only the first."""
    end = min(max(end, 0), len(text))
    return end if end == len(text) else text.rfind("\n", 0, end) + 1 or end
