"""A function over a stream of pieces, on all cores and in order."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Piece = TypeVar("Piece")
Made = TypeVar("Made")

ALONE = (
    8_000_000  # characters worked on in this process, before it is worth to start others
)
AHEAD = 3  # pieces per worker that are made or wait, which bounds the memory


def num_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def mapped(
    function: Callable[[Piece], Made],
    pieces: Iterable[Piece],
    size: Callable[[Piece], int],
    alone: int | None = None,
    cores: int | None = None,
) -> Iterator[Made]:
    """Yield function(piece) of each piece in order; `size` counts a piece's characters.

    The first `alone` characters are worked on in this process, the others in one process a
    core. Those processes are loky's: they start afresh, so the threads of JAX here do no
    harm, and they import neither the main module nor JAX.
    """
    alone = ALONE if alone is None else alone
    pieces, done = iter(pieces), 0
    for piece in pieces:
        yield function(piece)
        done += size(piece)
        if done >= alone and (cores or num_cores()) > 1:
            yield from in_processes(function, pieces, cores or num_cores())


def in_processes(
    function: Callable[[Piece], Made], pieces: Iterator[Piece], num: int
) -> Iterator[Made]:
    from joblib.externals.loky import ProcessPoolExecutor

    first = next(pieces, None)
    if first is None:
        return
    executor = ProcessPoolExecutor(num)
    pending: collections.deque[Any] = collections.deque([executor.submit(function, first)])
    try:
        for piece in pieces:
            pending.append(executor.submit(function, piece))
            if len(pending) >= AHEAD * num:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, kill_workers=bool(pending))
