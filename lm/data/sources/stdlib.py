"""The built-in corpus: the source of the running interpreter's standard library.

Every machine with Python has this text. It is read as a TFDS dataset with the splits
`train` and `validation`, the modules of the library (a hash of the path decides; variants
of one another all train), and `tests`, the library's own test suite. Not every interpreter
ships the tests; where they are, they are the shifted split.
"""

import hashlib
import os
import pathlib
import platform
import sysconfig
from collections.abc import Iterator

from lm.data.sources.corpus import SHIFTED, Corpus, Document
from lm.data.sources.listing import file_digests
from lm.data.sources.reading import BadRecords
from lm.data.sources.tfds import tfds_documents

# An eighth of the modules, about a twelfth of the text. Half of that doubles the interval
# of the loss over modules; twice as many make it no narrower than the training text that
# they cost is worth.
VALIDATION_SHARE = 0.125
# More than a hundred tables of characters in the same words. With some of them held out,
# the loss on these measured what the others had taught, and on the rest the language.
VARIANTS = "encodings"


def stdlib_folder() -> pathlib.Path:
    return pathlib.Path(sysconfig.get_path("stdlib"))


def source_files() -> list[pathlib.Path]:
    """List the .py files of the library, relative to its folder, in a fixed order."""
    found = []
    for folder, folders, names in os.walk(stdlib_folder()):
        folders[:] = [x for x in folders if x not in ("site-packages", "dist-packages")]
        found += [pathlib.Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(path.relative_to(stdlib_folder()) for path in found)


def split_of(path: pathlib.Path) -> str:
    """Return the split of a module: "tests" by its folder, else by a hash of its path."""
    if any(part in ("test", "tests", "idle_test") for part in path.parts[:-1]):
        return "tests"
    if path.parts[0] == VARIANTS:
        return "train"
    digest = hashlib.blake2b(path.as_posix().encode(), digest_size=4).digest()
    share = int.from_bytes(digest, "big") / 2**32
    return "validation" if share < VALIDATION_SHARE else "train"


def identity_of(paths: list[pathlib.Path], cache: pathlib.Path) -> dict[str, str]:
    """Return what decides the text of the splits of modules; see `file_digests`."""
    files = [stdlib_folder() / path for path in paths]
    digests = file_digests(files, cache, BadRecords("stop"))
    made_of = [
        (split_of(path), path.as_posix(), digest)
        for path, digest in zip(paths, digests, strict=True)
    ]
    digest = hashlib.blake2b(repr(made_of).encode(), digest_size=16).hexdigest()
    return {"version": platform.python_version(), "files": digest}


def examples(paths: list[pathlib.Path]) -> Iterator[tuple[str, dict[str, str]]]:
    for path in paths:
        raw = (stdlib_folder() / path).read_bytes()
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            continue  # some test files have another encoding on purpose
        if text.strip():
            yield path.as_posix(), {"path": path.as_posix(), "text": text}


def stdlib_corpus(cache: pathlib.Path) -> Corpus:
    paths = source_files()
    identity = {"source": "stdlib"} | identity_of(paths, cache)
    names = {"shifted": "tests"}

    def documents(split: str) -> Iterator[Document]:
        # Imported where used: other sources need no TFDS, which takes seconds to import.
        from lm.data.sources.stdlib_builder import Stdlib

        folder = cache / "tfds" / identity["files"]
        builder = Stdlib(data_dir=folder, file_format="array_record")
        return tfds_documents(builder, names.get(split, split), "text", "path")

    has_tests = any(split_of(path) == "tests" for path in paths)
    return Corpus(identity, documents, SHIFTED if has_tests else SHIFTED[:2])
