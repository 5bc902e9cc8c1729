"""The duty cycle of accelerators: the share of time in which they run any operation.

It is read from a profiler's trace. A TPU's plane has one line of operations; a GPU's plane
has one for each stream, and kernels of several streams overlap. Lines of whole steps and
modules span the gaps between operations, so they are left out (as in XProf's duty cycle). A
CPU has no plane of its own.
"""

import pathlib
import re
import statistics
import tempfile
from collections.abc import Callable

import jax
from jax.profiler import ProfileData

PLANE = re.compile(r"/device:(GPU|TPU):\d+$")
LINE = re.compile(r"XLA Ops$|Stream #")

Span = tuple[float, float]  # (start, end), ns


def traced_duty_cycle(work: Callable[[], object]) -> float | None:
    """Trace the work until its results are ready; return the mean over devices, or None."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(work())
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        return duty_cycle(ProfileData.from_file(str(file)))


def duty_cycle(trace: ProfileData) -> float | None:
    """Return the mean over this host's accelerators, 0 to 1; None if the trace has none.

    Time runs from the first event on any accelerator to the last.
    """
    spans = [device_spans(plane) for plane in trace.planes if PLANE.match(plane.name)]
    every = [span for device in spans for span in device]
    if not every:
        return None
    whole = max(end for _, end in every) - min(start for start, _ in every)
    return statistics.fmean(covered(device) / whole for device in spans)


def device_spans(plane) -> list[Span]:
    return [
        (event.start_ns, event.start_ns + event.duration_ns)
        for line in plane.lines
        if LINE.match(line.name)
        for event in line.events
    ]


def covered(spans: list[Span]) -> float:
    """Return the length of the union of the spans, ns."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total
