"""Waits for other processes: they are told, and they end."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

SILENT_SECONDS = 5.0


@contextlib.contextmanager
def waiting(whom: str, seconds: float, remedy: str) -> Iterator[None]:
    """Say after 5 s for whom this process waits; end it, with exit code 2, at the limit.

    A thread does it, because JAX waits in C++, which would abort the process with a stack
    trace, and where a signal's handler would not be called.
    """
    over = threading.Event()

    def watch() -> None:
        until = time.time() + seconds
        if over.wait(min(SILENT_SECONDS, seconds)):
            return
        clock = time.strftime("%H:%M:%S", time.localtime(until))
        print(f"waiting for {whom}, until {clock}", file=sys.stderr, flush=True)
        if not over.wait(max(until - time.time(), 0)):
            line = f"error: waited {seconds:g} s in vain for {whom}; {remedy}"
            print(line, file=sys.stderr, flush=True)
            os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
