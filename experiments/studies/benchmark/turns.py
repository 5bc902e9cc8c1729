"""How one side of a benchmark takes its turns: lines of JSON over a pipe.

The standard library alone, for nanogpt.py runs in an environment without JAX.
"""

import json
import math
import resource
import sys
import time
from collections.abc import Callable


def serve(step: Callable[[], float]) -> None:
    """Take the first step, then as many as each line of input asks for, and one more.

    That one comes first and is not timed: the system may have taken back the pages of a
    process that waited for its turn. `step` returns the loss.
    """
    print(json.dumps({"ready": True, "loss": step()}), flush=True)
    for line in sys.stdin:
        step()
        start = time.perf_counter()
        for _ in range(int(line)):
            loss = step()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        finite = math.isfinite(loss)
        print(json.dumps({"seconds": seconds, "peak": peak, "finite": finite}), flush=True)
