"""Where pairs of a source and a target text come from.

docstring  The source is a function of the Python standard library without its docstring,
           the target the first line of the docstring. Whole modules are held out, as in
           lm/data/sources/stdlib.py.
gettext    The source is a message, the target its translation, from the .mo catalogues of
           installed packages.
parallel   Source and target are the same line of two text files.
"""

import ast
import hashlib
import pathlib
import struct
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import NamedTuple

from lm.data.sources.files import file_digest, list_files, read_text
from lm.data.sources.stdlib import identity_of, source_files, split_of, stdlib_folder

Pair = tuple[str, str]
MAGIC = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}  # of .mo files, by byte order


class PairCorpus(NamedTuple):
    identity: dict[str, object]
    pairs: Callable[[str], Iterator[Pair]]  # split -> (source, target)
    cuts_sources: bool  # True: a long source loses its end; False: its pair is left out
    splits: tuple[str, ...] = ("train", "validation")


def docstring_corpus(cache: pathlib.Path) -> PairCorpus:
    paths = source_files()

    def pairs(split: str) -> Iterator[Pair]:
        for path in paths:
            if split_of(path) == split:
                yield from documented_functions((stdlib_folder() / path).read_bytes())

    identity = {"source": "docstring"} | identity_of(paths, cache)
    return PairCorpus(identity, pairs, cuts_sources=True)


def documented_functions(code: bytes) -> Iterator[Pair]:
    """Yield each function without its docstring, and the first line of the docstring."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return  # the tests of the library hold files that are broken on purpose
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if docstring := (ast.get_docstring(node) or "").strip():
            node.body = node.body[1:] or [ast.Pass()]
            yield ast.unparse(node), docstring.splitlines()[0].strip()


def gettext_corpus(package: str, language: str, validation_share: float) -> PairCorpus:
    """Read catalogues; a hash of the message decides if it is held out."""
    files = catalogues(package, language)

    def pairs(split: str) -> Iterator[Pair]:
        for file in files:
            for source, target in read_mo(file):
                if held_out(source, validation_share) == (split == "validation"):
                    yield source, target

    identity = {
        "source": "gettext",
        "package": package,
        "language": language,
        "files": list(map(file_digest, files)),
        "validation_share": validation_share,
    }
    return PairCorpus(identity, pairs, cuts_sources=False)


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
    raw = file.read_bytes()
    if raw[:4] not in MAGIC:
        raise ValueError(f"{file} is not a compiled gettext catalogue")
    order = MAGIC[raw[:4]]
    _, count, *tables = struct.unpack_from(f"{order}4I", raw, 4)
    for index in range(count):
        strings = []
        for table in tables:
            size, offset = struct.unpack_from(f"{order}2I", raw, table + 8 * index)
            strings.append(raw[offset : offset + size].decode().split("\0"))
        messages, translations = strings
        messages[0] = messages[0].rpartition("\x04")[2]
        pairs = [(messages[0], translations[0]), (messages[-1], translations[-1])]
        yield from (pair for pair in dict.fromkeys(pairs) if all(pair))


def parallel_corpus(path: str, target_path: str, validation_share: float) -> PairCorpus:
    """Read two files line by line; a hash of the source line decides if it is held out."""
    files = []
    for field, pattern in [("data.path", path), ("data.target_path", target_path)]:
        files += list_files(field, pattern)[:2]
    if len(files) != 2:
        raise ValueError(
            "data.path and data.target_path must each be one file; they match "
            f"{', '.join(map(str, files))}"
        )
    lines = [read_text(file).split("\n") for file in files]
    lines = [each[:-1] if each[-1] == "" else each for each in lines]
    if len(lines[0]) != len(lines[1]):
        raise ValueError(
            f"{files[0]} has {len(lines[0])} lines and {files[1]} has {len(lines[1])}; "
            "each line of the one must be the translation of the same line of the other"
        )

    def pairs(split: str) -> Iterator[Pair]:
        for source, target in zip(*lines, strict=True):
            if held_out(source, validation_share) == (split == "validation"):
                yield source, target

    identity = {
        "source": "parallel",
        "files": list(map(file_digest, files)),
        "validation_share": validation_share,
    }
    return PairCorpus(identity, pairs, cuts_sources=False)


def held_out(text: str, share: float) -> bool:
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < share * 2**32
