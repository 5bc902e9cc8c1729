"""How a run ends early because a signal asks for it."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
    """Yield a function that says whether the run is to end after this step.

    A single process ends after SIGTERM or SIGINT. Several processes must end at the same
    step. JAX's coordination service takes SIGTERM of any of them, and agrees with all on
    the first step that none has passed; so each process asks once in each step. SIGINT
    keeps its usual effect there.
    """
    received: list[int] = []
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    previous = {
        number: signal.signal(number, lambda n, frame: received.append(n))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield lambda step: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
