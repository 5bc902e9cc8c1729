"""The machine that a plan is for: a name, or a file that experiments.calibrate writes."""

import json
import pathlib
from typing import Any

from experiments.processes.files import json_line, read_object, write_whole
from parallel.cost.machine import Hardware, Link, Machine, parse

FILE = "hardware.json"
AGAIN = "python -m experiments.calibrate writes it anew"


def hardware_of(text: str) -> Hardware:
    """Return what --hardware names: NAME:SIZES, this[:N] or a file[:N]; else ValueError."""
    name, _, sizes = text.partition(":")
    file = pathlib.Path(FILE if name == "this" else name)
    if name != "this" and file.suffix != ".json":
        return parse(text)
    if not file.is_file():
        raise ValueError(
            f"--hardware={text}: there is no {file}; python -m experiments.calibrate "
            f"--out={file} measures this machine and writes it"
        )
    machine, number = read_machine(file)
    return parse(f"this:{sizes or number}", machine)


def read_machine(file: pathlib.Path) -> tuple[Machine, int]:
    """Return a measured machine, and how many devices took part; ValueError if damaged."""
    found = read_object(file, AGAIN)
    try:
        return machine_of(found), int(found["devices"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} lacks or has a wrong {error}; {AGAIN}") from None


def machine_of(found: dict[str, Any]) -> Machine:
    """Return the machine of which experiments.calibrate has found this."""
    flops = {
        dtype: tuple((float(size), float(rate)) for size, rate in table)
        for dtype, table in found["flops"].items()
    }
    links = {
        kind: Link(float(link["bandwidth"]), float(link["latency"]))
        for kind, link in found["collectives"].items()
    }
    factors = {name: float(x) for name, x in found.get("factors", {}).items()}
    return Machine(
        "this",
        flops,
        float(found["memory"]),
        float(found["memory_bandwidth"]),
        # A single device sends to none.
        links.get("all-reduce", Link(float("inf"), 0.0)),
        None,
        # On a CPU the host's memory is the device's; on a GPU it was not measured.
        host=float(found["memory_bandwidth"]),
        overlaps=bool(found["overlaps"]),
        efficiency=1.0,
        collectives=links,
        factors=factors,
        overhead=float(found.get("overhead", 0.0)),
        cache=float(found.get("cache", 0.0)),
        platform=str(found["platform"]),
    )


def write_machine(file: pathlib.Path, found: dict[str, Any]) -> None:
    write_whole(file, json_line(found, indent=1))


def shown(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1)
