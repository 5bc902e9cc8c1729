"""The built-in corpus: the source of the running interpreter's standard library.

Every machine with Python has this text. It is read as a TFDS dataset with the splits
`train` and `validation`, the modules of the library (a hash of the path decides), and
`tests`, the library's own test suite. Not every interpreter ships the tests; where they
are, they are the shifted split.
"""

import hashlib
import pathlib
import sysconfig
from collections.abc import Iterator

from lm.data.sources.corpus import SHIFTED, Corpus
from lm.data.sources.tfds import tfds_documents

VALIDATION_SHARE = 0.05


def stdlib_folder() -> pathlib.Path:
    return pathlib.Path(sysconfig.get_path("stdlib"))


def source_files() -> list[pathlib.Path]:
    """List the .py files of the library, relative to its folder, in a fixed order."""
    folder = stdlib_folder()
    return sorted(
        path.relative_to(folder)
        for path in folder.rglob("*.py")
        if "site-packages" not in path.parts and "dist-packages" not in path.parts
    )


def split_of(path: pathlib.Path) -> str:
    """Return the split of a module: "tests" by its folder, else by a hash of its path."""
    if any(part in ("test", "tests", "idle_test") for part in path.parts[:-1]):
        return "tests"
    digest = hashlib.blake2b(path.as_posix().encode(), digest_size=4).digest()
    share = int.from_bytes(digest, "big") / 2**32
    return "validation" if share < VALIDATION_SHARE else "train"


def has_tests() -> bool:
    return any(split_of(path) == "tests" for path in source_files())


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
    # Imported where used: other sources need no TFDS, which takes seconds to import.
    from lm.data.sources.stdlib_builder import Stdlib

    builder = Stdlib(data_dir=cache / "tfds", file_format="array_record")
    names = {"shifted": "tests"}
    return Corpus(
        {"source": "stdlib", "version": str(builder.version)},
        lambda split: tfds_documents(builder, names.get(split, split), "text", "path"),
        SHIFTED if has_tests() else SHIFTED[:2],
    )
