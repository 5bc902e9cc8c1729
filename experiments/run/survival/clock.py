"""Where the seconds of a process go."""

import collections
import contextlib
import time
from collections.abc import Iterator

# Of a run's seconds, in the order in which they are told.
PARTS = ("prepare", "compile", "data", "step", "check", "eval", "checkpoint", "copy")


class Clock:
    """Counts wall-clock seconds, and CPU seconds of this process, by part of the run.

    Another thread may read `part`, `since` and `told` at any time.
    """

    def __init__(self):
        self.wall = time.time()  # at the beginning
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.core_seconds: dict[str, float] = collections.defaultdict(float)
        self.part, self.since = "", self.began
        self.been: set[str] = set()  # parts that have ended since it was last emptied

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        core_start = time.process_time()
        start = time.perf_counter()
        self.part, self.since = part, start
        try:
            yield
        finally:
            self.part, self.since = "", time.perf_counter()
            self.been.add(part)
            self.seconds[part] += self.since - start
            self.core_seconds[part] += time.process_time() - core_start

    def tick(self) -> None:
        """Say that a part which takes long has got on."""
        self.since = time.perf_counter()

    def told(self) -> dict:
        """Return the seconds by part up to now, and how many there are altogether."""
        return {"elapsed": time.perf_counter() - self.began, "seconds": dict(self.seconds)}
