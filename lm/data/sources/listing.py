"""Which files a path, a folder or a glob means, and a digest of each."""

import hashlib
import json
import os
import pathlib
import stat
import time
from collections.abc import Iterator, Sequence

import filelock

from lm.data.sources.reading import BadRecord, BadRecords

SETTLED = 2_000_000_000  # ns; a file that changed more recently may change unseen
UNKNOWN = ["", None]  # differs from what is kept of any file, also of one that is gone
HINT = "; a bracket in a glob is a choice of letters, write [[] for the letter ["


def list_files(field: str, pattern: str) -> list[pathlib.Path]:
    """List the files of a path, a folder or a glob; ValueError if there are none.

    A folder means all files below it, each once, without hidden ones. A glob means the
    files that it matches, not the folders. Empty files are left out.
    """
    if not pattern:
        raise ValueError(f"{field} is empty; give a file, a folder or a glob")
    try:
        found = found_at(pathlib.Path(os.path.expanduser(pattern)))
    except OSError as error:  # of a folder above, or for too long a name
        raise ValueError(f"{field} {pattern!r} cannot be read ({error.strerror})") from None
    if found is None:
        raise ValueError(
            f"{field} {pattern!r} matches only folders; give a folder itself, or end the "
            "glob with **/*"
        )
    if not found:
        raise ValueError(f"{field} {pattern!r} matches no file{HINT * ('[' in pattern)}")
    filled = [file for file in found if not is_empty(file)]
    if not filled:
        raise ValueError(f"{field}: {found[0]} is empty; remove it or fill it")
    return filled


def found_at(path: pathlib.Path) -> list[pathlib.Path] | None:
    """Return the files that a path means; None if it is a glob of folders alone."""
    if path.is_dir():
        return sorted(below(path))
    if os.path.lexists(path):
        return [path]
    matched = match(path)
    found = [each for each in matched if not each.is_dir()]
    return None if matched and not found else found


def below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the files below a folder; links are followed, but no folder is met twice.

    A folder that cannot be listed comes as a file: whoever opens it says why.
    """
    met: set[tuple[int, int]] = set()
    closed: list[OSError] = []
    for parent, folders, names in os.walk(folder, onerror=closed.append, followlinks=True):
        about = os.stat(parent)
        if (about.st_dev, about.st_ino) in met:
            folders.clear()
            continue
        met.add((about.st_dev, about.st_ino))
        # In a fixed order, so that of two links to one folder the same is followed.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            pathlib.Path(parent, name)
            for name in names
            if not name.startswith(".") and is_file(pathlib.Path(parent, name))
        )
    yield from (pathlib.Path(error.filename) for error in closed)


def match(pattern: pathlib.Path) -> list[pathlib.Path]:
    """Return what a glob matches, without hidden files unless it asks for them.

    Its first parts, as far as they exist as they are written, are no globs. "**" follows
    no links to folders, which may be loops.
    """
    root = pathlib.Path(pattern.anchor)
    parts = pattern.relative_to(root).parts
    while parts and (root / parts[0]).exists():
        root, parts = root / parts[0], parts[1:]
    hidden = any(part.startswith(".") for part in parts)
    return sorted(
        each
        for each in set(root.glob(str(pathlib.Path(*parts))))
        if hidden or not any(x.startswith(".") for x in each.relative_to(root).parts)
    )


def is_file(path: pathlib.Path) -> bool:
    """Tell a file, or a link to nothing, from pipes, sockets and devices."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True  # whoever opens it says what is wrong with it


def is_empty(file: pathlib.Path) -> bool:
    """Tell files and pipes without bytes; a folder has none on some file systems."""
    try:
        about = file.stat()
    except OSError:
        return False
    return not stat.S_ISDIR(about.st_mode) and about.st_size == 0


def file_digests(
    files: Sequence[pathlib.Path], cache: pathlib.Path | None, bad: BadRecords
) -> list[str]:
    """Return a digest of the bytes of each file; "" for one that `bad` lets pass.

    The digests are kept in the folder `cache`, so that a corpus is hashed once, not by each
    process at each start. A file is hashed again if its size, its inode or one of its times
    of change differs. A change that leaves all of these as they are is not seen.
    """
    if cache is None:
        return [digest(file, bad) for file in files]
    store = cache / "digests.json"
    known, states = load(store), [state(file) for file in files]
    if any(known.get(p, UNKNOWN)[1:] != s for p, s in states):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(cache / "digests.lock"):
                known = load(store)
                add_digests(known, files, states, bad)
                save(store, known)
        except OSError:  # whoever writes the rows says what is wrong with the cache
            add_digests(known, files, states, bad)
    return [known[path][0] for path, _ in states]


def add_digests(known: dict, files, states, bad: BadRecords) -> None:
    for file, (path, about) in zip(files, states, strict=True):
        if known.get(path, UNKNOWN)[1:] != about:
            known[path] = [digest(file, bad), *about]


def digest(file: pathlib.Path, bad: BadRecords) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "blake2b").hexdigest()[:16]
    except OSError as error:
        bad(BadRecord(file, f"cannot be read ({error.strerror})"))
        return ""


def state(file: pathlib.Path) -> tuple[str, list[int]]:
    """Return the path of a file, and what changes when its text changes."""
    path = os.path.abspath(file)
    try:
        about = os.stat(path)
    except OSError:
        return path, []
    return path, [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]


def load(store: pathlib.Path) -> dict[str, list]:
    try:
        return json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def save(store: pathlib.Path, known: dict[str, list]) -> None:
    """Keep the digests of files that exist and have not changed just now."""
    settled = time.time_ns() - SETTLED
    kept = {
        path: entry
        for path, entry in known.items()
        if len(entry) == 5 and max(entry[2:4]) < settled and os.path.exists(path)
    }
    partial = store.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(kept), encoding="utf-8")
    partial.replace(store)
