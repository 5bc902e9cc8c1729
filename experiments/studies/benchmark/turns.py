"""One side of a benchmark takes turns with the others, over pipes.

Each line of input is a number of steps to take; each answer is a line of JSON. This file
uses the standard library alone, because nanogpt.py runs in an environment without JAX.
"""

import json
import math
import resource
import sys
import time
from collections.abc import Callable


def peak_of_process() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(step: Callable[[], float], peak: Callable[[], int] = peak_of_process) -> None:
    """Take the first step; then, for each line of input, as many as it asks for.

    One step that is not timed comes before those of each line, because the system may have
    taken memory pages from a process that waited for its turn. `step` returns the loss,
    `peak` the most bytes of memory held so far.
    """
    print(json.dumps({"ready": True, "loss": step()}), flush=True)
    for line in sys.stdin:
        step()
        start = time.perf_counter()
        for _ in range(int(line)):
            loss = step()
        seconds = time.perf_counter() - start
        told = {"seconds": seconds, "peak": peak(), "finite": math.isfinite(loss)}
        print(json.dumps(told), flush=True)
