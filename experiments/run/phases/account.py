"""What each phase of a run took: steps, tokens, seconds."""

import statistics
from collections.abc import Sequence
from typing import Any

from experiments.processes.messages import human
from experiments.run.phases.phase import Phase

Record = dict[str, Any]


def by_phase(records: Sequence[Record], phases: Sequence[Phase]) -> list[Record]:
    """Return the figures of each phase from the training records of a whole run.

    Steps whose records were lost count for nothing. The devices are those that the phase
    has in this process.
    """
    found, before = [], 0
    for phase in phases:
        own = [r for r in records if phase.first < r["step"] <= phase.last]
        tokens = own[-1]["tokens"] if own else before
        rates = [r["tokens_per_second"] for r in own]
        found.append(
            {
                "steps": [phase.first + 1, phase.last],
                "strategy": phase.config.parallel.strategy,
                "devices": phase.config.parallel.mesh().size,
                "seconds": sum(r["step_seconds"] for r in own),
                "tokens": tokens - before,
                "tokens_per_second": statistics.median(rates) if rates else None,
            }
        )
        before = tokens
    return found


def told_phases(summary: Record) -> list[str]:
    """Return a line for each phase, if there are several."""
    return [
        f"steps {each['steps'][0]} to {each['steps'][1]}: {each['strategy']} over "
        f"{each['devices']} device(s), {each['seconds']:.1f} s in steps, "
        f"{human(each['tokens'])} tokens, {human(each['tokens_per_second'] or 0)} a second"
        for each in summary.get("phases", [])
    ]
