"""A function over a stream of pieces, on all cores and in order.

Cores is the executor of one machine. Another one, such as Ray's, has the same `map`.
"""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

Piece = TypeVar("Piece")
Made = TypeVar("Made")

ALONE = (
    8_000_000  # characters worked on in this process, before others are worth their start
)
AHEAD = 3  # pieces for each worker that wait or are made, which bounds the memory


def num_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # on macOS and Windows
        return os.cpu_count() or 1


class Executor(Protocol):
    def map(
        self,
        function: Callable[[Piece], Made],
        pieces: Iterable[Piece],
        size: Callable[[Piece], int],
    ) -> Iterator[Made]:
        """Yield function(piece) of each piece in order; `size` counts its characters.

        Only some pieces of the stream are in memory at any time.
        """
        ...


Start = Callable[[], AbstractContextManager[Executor]]  # starts an executor, and ends it


class Cores:
    """The processes that work on pieces; they are started when there is enough to do.

    They are loky's, which start afresh: the threads of JAX in this process do no harm, and
    the workers import neither the main module nor JAX.
    """

    def __init__(self, num: int = 0):
        """0: as many as this process may use."""
        self.num = num or num_cores()
        self.left = ALONE
        self.executor: Any = None

    def __enter__(self) -> "Cores":
        return self

    def __exit__(self, kind, *_) -> None:
        if self.executor:
            self.executor.shutdown(wait=True, kill_workers=kind is not None)

    def map(
        self,
        function: Callable[[Piece], Made],
        pieces: Iterable[Piece],
        size: Callable[[Piece], int],
    ) -> Iterator[Made]:
        """See Executor."""
        pending: collections.deque[Any] = collections.deque()
        for piece in pieces:
            if self.num == 1 or self.left > 0:
                self.left -= size(piece)
                yield function(piece)
                continue
            pending.append(self.started().submit(function, piece))
            if len(pending) >= AHEAD * self.num:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def started(self) -> Any:
        if self.executor is None:
            from joblib.externals.loky import ProcessPoolExecutor

            self.executor = ProcessPoolExecutor(self.num)
        return self.executor
