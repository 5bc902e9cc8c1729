"""Messages of commands to their users, and errors of use."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def user_errors(*kinds: type[Exception], code: int = 2) -> Iterator[None]:
    """End the process with the message of these errors (default: ValueError, OSError).

    An exit code of 2 says that the same command would fail again.

    Only code that checks the user's input belongs inside; elsewhere a traceback helps more.
    """
    kinds = kinds or (ValueError, OSError)
    try:
        yield
    except kinds as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(code)


def is_main_process() -> bool:
    import jax  # here, because a command that only starts others needs no JAX

    return jax.process_index() == 0


def say(line: str) -> None:
    """Print a line for the user, once for all processes."""
    if is_main_process():
        print(line, file=sys.stderr, flush=True)


def human(number: float) -> str:
    """Format with three digits and a unit: 12.3 k, 4.56 M."""
    for unit in ("", " k", " M", " G", " T"):
        if abs(number) < 1000 or number != number:  # NaN compares false
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} P"


def size(num_bytes: float) -> str:
    """Format as human does: 12.3 kB."""
    return human(num_bytes) + ("B" if num_bytes >= 1000 else " B")
