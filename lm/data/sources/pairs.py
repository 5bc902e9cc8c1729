"""Where pairs of a source and a target text come from.

gettext   The source is a message, the target its translation, from the .mo catalogues of
          installed packages.
parallel  Source and target are the same line of two text files.
"""

import functools
import itertools
import pathlib
import struct
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import NamedTuple

from lm.data.sources.files import DEFAULT, Policy
from lm.data.sources.listing import file_digests, list_files
from lm.data.sources.reading import BadRecord, BadRecords, raw_lines, read_lines
from lm.data.sources.splits import border, place

Pair = tuple[str, str]
MAGIC = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}  # of .mo files, by byte order


class PairCorpus(NamedTuple):
    identity: dict[str, object]
    pairs: Callable[[str], Iterator[Pair]]  # split -> (source, target)
    splits: tuple[str, ...] = ("train", "validation")


def held_out_pairs(
    pairs: Callable[[], Iterator[Pair]], share: float
) -> Callable[[str], Iterator[Pair]]:
    """Return split -> its pairs; a hash of the source decides if it is held out."""

    @functools.cache
    def held_out_below() -> int:
        filled = (source for source, target in pairs() if source.strip() and target.strip())
        return border(map(place, filled), share) or 0

    def side(split: str) -> Iterator[Pair]:
        for source, target in pairs():
            if (place(source) < held_out_below()) == (split == "validation"):
                yield source, target

    return side


def gettext_corpus(
    package: str, language: str, validation_share: float, policy: Policy = DEFAULT
) -> PairCorpus:
    """Read catalogues; a hash of the message decides if it is held out."""
    files = catalogues(package, language)
    told: set[str] = set()

    def pairs() -> Iterator[Pair]:
        bad = BadRecords(policy.on_bad_record)
        for file in files:
            try:
                yield from read_mo(file)
            except BadRecord as error:
                bad(error)
        bad.report(told)

    identity = {
        "source": "gettext",
        "package": package,
        "language": language,
        "files": file_digests(files, policy.cache, BadRecords(policy.on_bad_record)),
        "validation_share": validation_share,
    }
    return PairCorpus(identity, held_out_pairs(pairs, validation_share))


def catalogues(package: str, language: str) -> list[pathlib.Path]:
    """List the catalogues of an installed package; "": those of all packages."""
    try:
        found = [metadata.distribution(package)] if package else metadata.distributions()
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"data.name {package!r} is not an installed package; install it, for example "
            "pip install Django with data.name=django"
        ) from None
    pattern = "locale/*/LC_MESSAGES/*.mo"
    files = {
        pathlib.Path(each.locate_file(file))
        for each in found
        for file in each.files or ()
        if file.match(pattern)
    }
    languages = sorted({file.parts[-3] for file in files})
    if language not in languages:
        raise ValueError(
            f"{package or 'what is installed'} has no catalogue of data.language "
            f"{language!r}; it has {', '.join(languages) or 'none of any language'}"
        )
    return sorted(file for file in files if file.parts[-3] == language)


def read_mo(file: pathlib.Path) -> Iterator[Pair]:
    """Yield (message, translation) of a compiled catalogue, without contexts.

    A message with a plural gives two pairs: the singular with the first form of the
    translation, and the plural with the last. Format: GNU gettext manual, "The Format of
    GNU MO Files".
    """
    try:
        raw = file.read_bytes()
        if raw[:4] not in MAGIC:
            raise BadRecord(file, "is not a compiled gettext catalogue")
        order = MAGIC[raw[:4]]
        _, count, *tables = struct.unpack_from(f"{order}4I", raw, 4)
        texts = [
            [
                string_at(raw, *struct.unpack_from(f"{order}2I", raw, table + 8 * index))
                for table in tables
            ]
            for index in range(count)
        ]
    except (OSError, struct.error, UnicodeDecodeError) as error:
        raise BadRecord(file, f"cannot be read ({error})") from None
    for message, translation in texts:
        messages, translations = message.split("\0"), translation.split("\0")
        messages[0] = messages[0].rpartition("\x04")[2]
        pairs = [(messages[0], translations[0]), (messages[-1], translations[-1])]
        yield from (pair for pair in dict.fromkeys(pairs) if all(pair))


def string_at(raw: bytes, size: int, offset: int) -> str:
    if offset + size > len(raw):
        raise struct.error("it ends too early")
    return raw[offset : offset + size].decode()


def parallel_corpus(
    path: str, target_path: str, validation_share: float, policy: Policy = DEFAULT
) -> PairCorpus:
    """Read two files line by line; a hash of the source line decides if it is held out."""
    files = []
    for field, pattern in [("data.path", path), ("data.target_path", target_path)]:
        files += list_files(field, pattern)[:2]
    if len(files) != 2:
        raise ValueError(
            "data.path and data.target_path must each be one file; they match "
            f"{', '.join(map(str, files))}"
        )
    told: set[str] = set()

    def pairs() -> Iterator[Pair]:
        bad = BadRecords(policy.on_bad_record)
        for lines in itertools.zip_longest(*(read_lines(file, bad) for file in files)):
            if None in lines:
                raise ValueError(unequal_lines(files))
            (_, source), (_, target) = lines
            if source is not None and target is not None:
                yield source, target
        bad.report(told)

    identity = {
        "source": "parallel",
        "files": file_digests(files, policy.cache, BadRecords(policy.on_bad_record)),
        "validation_share": validation_share,
    }
    return PairCorpus(identity, held_out_pairs(pairs, validation_share))


def unequal_lines(files: list[pathlib.Path]) -> str:
    counts = [sum(1 for _ in raw_lines(file)) for file in files]
    return (
        f"{files[0]} has {counts[0]} lines and {files[1]} has {counts[1]}; "
        "each line of the one must be the translation of the same line of the other"
    )
