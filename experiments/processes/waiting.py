"""Waits for other processes: announced to the user, and limited in time."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

SILENT_SECONDS = 5.0


@contextlib.contextmanager
def waiting(whom: str, seconds: float, remedy: str) -> Iterator[None]:
    """Say after 5 s for whom this process waits; end it with exit code 2 at the limit.

    A thread does this, because JAX waits in C++: there no signal handler is called, and at
    its own limit JAX aborts with a stack trace.
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
