"""In which collective a process may be waiting.

A collective that waits is inside a compiled program, and nothing outside sees which one of
its instructions runs. So a step with one collective tells it; of a step with more, all are
told, in the order of the program.
"""

import contextlib
import threading
from collections.abc import Callable

from parallel.cost.ledger import Entry, collectives
from parallel.program import Program

PATIENCE = 20.0  # seconds to read a large program's text
# What processes wait for in the other parts of a run.
PARTS = {
    "check": "the all-gather that compares the copies of the state",
    "eval": "a sum of the evaluation's program",
    "checkpoint": "the others' parts of a checkpoint",
}


def waited_for(part: str, program: Program | None) -> list[str]:
    """Return lines that say in what a process waits; none where that cannot be known."""
    if part in PARTS:
        return [f"  it is in {PARTS[part]}"]
    if part != "step" or program is None:
        return []
    lines = within(PATIENCE, lambda: step_collectives(program))
    if len(lines) < 2:
        return [f"  the step has one collective: {line}" for line in lines]
    head = (
        f"  it is in one of the step's {len(lines)} collectives, which run in this order:"
    )
    return [head, *(f"    {number}. {line}" for number, line in enumerate(lines, 1))]


def step_collectives(program: Program) -> list[str]:
    """Return each line of a compiled step's ledger, in the order of the program."""
    step = getattr(program.step, "largest", program.step)
    programs = getattr(step, "programs", [(step, program.mesh)])
    return list(
        dict.fromkeys(
            told(entry)
            for one, mesh in programs
            if hasattr(one, "as_text")  # pmap has none
            for entry in collectives(one.as_text(), mesh)
            if entry.count
        )
    )


def told(entry: Entry) -> str:
    where = f", asked for by {entry.source}" if entry.source else ""
    return f"{entry.kind} over {', '.join(entry.axes)} of {', '.join(entry.dtypes)}{where}"


def within(seconds: float, read: Callable[[], list[str]]) -> list[str]:
    """Return what a function returns in so many seconds; nothing if it fails or is late."""
    found: list[str] = []

    def run() -> None:
        with contextlib.suppress(Exception):  # a report without it is better than none
            found.extend(read())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return [] if thread.is_alive() else found
