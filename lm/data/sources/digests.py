"""Digests of files, which are read again only if their sizes or times have changed."""

import hashlib
import pathlib
from collections.abc import Iterable

from lm.data.sources.files import file_digest
from lm.data.whole import write_whole


def content_digest(files: Iterable[pathlib.Path], cache: pathlib.Path) -> str:
    """Return a hash of the contents of files in their order; their names do not count.

    It is kept in `cache / "digests"` under a hash of the files' paths, sizes and times, so
    that not every process reads every file at every start.
    """
    files = [file.absolute() for file in files]
    seen = [(str(file), file.stat()) for file in files]
    marks = repr([(name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in seen])
    kept = cache / "digests" / short_digest(marks.encode(errors="surrogateescape"))
    try:
        return kept.read_text(encoding="utf-8")
    except FileNotFoundError:
        found = short_digest("".join(map(file_digest, files)).encode())
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, found)
    except OSError:
        pass  # of a cache that cannot be written; preparing says so
    return found


def short_digest(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=16).hexdigest()
