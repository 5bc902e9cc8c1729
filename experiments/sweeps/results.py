"""Results as lines of JSON in one file; a line that exists is not measured again."""

import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

from experiments.processes.messages import is_main_process, say

Line = dict[str, Any]


def write(file: pathlib.Path, line: Line) -> None:
    """Add a line; only the main process writes."""
    if not is_main_process():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def read(file: pathlib.Path) -> list[Line]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


def measure_missing(
    file: pathlib.Path, heads: list[Line], measure: Callable[[Line], Line]
) -> None:
    """Measure the `heads` that the file does not hold yet, and write their lines."""
    there = read(file)
    heads = [h for h in heads if not any(h.items() <= line.items() for line in there)]
    began = time.perf_counter()
    for done, head in enumerate(heads, 1):
        line = measure(head)
        write(file, head | line)
        left = (time.perf_counter() - began) / done * (len(heads) - done) / 60
        numbers = {k: v for k, v in line.items() if isinstance(v, int | float)}
        figures = ", ".join(f"{name} {value:.5g}" for name, value in numbers.items())
        say(f"{done}/{len(heads)} {head['member']}: {figures}; {left:.0f} min left")
