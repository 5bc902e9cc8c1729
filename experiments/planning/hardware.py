"""The machine that a plan is for: a name, or a file that experiments.calibrate writes."""

import json
import math
import pathlib
from typing import Any

from experiments.processes.files import json_line, read_object, write_whole
from parallel.cost.machine import Hardware, Link, Machine, parse

FILE = "hardware.json"
PLATFORMS = ("cpu", "gpu", "tpu")
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
    hardware = parse(f"this:{sizes or number}", machine)
    if hardware.num_devices > 1 and not machine.collectives:
        raise ValueError(
            f"--hardware={text}: {file} was measured on one device, which sends nothing, "
            f"and the plan is for {hardware.num_devices}; run experiments.calibrate with "
            "two devices or --processes=2, or plan for this:1"
        )
    return hardware


def check_topology(topology: str | None, hardware: Hardware) -> None:
    """Raise ValueError if the devices to compile for are not those of the plan."""
    if topology and topology != hardware.name:
        raise ValueError(
            f"--topology={topology} compiles for other devices than "
            f"--hardware={hardware.name} plans for; give the same, or leave out one"
        )


def read_machine(file: pathlib.Path) -> tuple[Machine, int]:
    """Return a measured machine, and how many devices took part; ValueError if damaged."""
    found = read_object(file, AGAIN)
    try:
        return machine_of(found), int(found["devices"])
    except KeyError as error:
        raise ValueError(f"{file} lacks {error}; {AGAIN}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}); {AGAIN}") from None


def number(name: str, value: Any, above: bool = True) -> float:
    """Return a finite number above 0, or with above=False from 0; else ValueError."""
    fits = type(value) in (int, float) and 0 <= value < math.inf and (value or not above)
    if not fits:
        raise ValueError(
            f"{name} is {value!r}, expected a number {'above' if above else 'from'} 0"
        )
    return float(value)


def machine_of(found: dict[str, Any]) -> Machine:
    """Return the machine of which experiments.calibrate has found this.

    KeyError for what is lacking, ValueError for what cannot be.
    """
    flops = {
        dtype: tuple(
            sorted((float(size), number(f"flops of {dtype}", x)) for size, x in table)
        )
        for dtype, table in found["flops"].items()
    }
    if not flops["float32"]:
        raise ValueError("flops of float32 are [], expected [[width, FLOP/s], ...]")
    links = {
        kind: Link(
            number(f"the bandwidth of {kind}", link["bandwidth"]),
            number(f"the latency of {kind}", link["latency"], above=False),
        )
        for kind, link in found["collectives"].items()
    }
    factors = {
        name: number(f"the factor of {name}", x, above=False)
        for name, x in found.get("factors", {}).items()
    }
    if found["platform"] not in PLATFORMS:
        raise ValueError(
            f"platform is {found['platform']!r}, expected {' or '.join(PLATFORMS)}"
        )
    bandwidth = number("memory_bandwidth", found["memory_bandwidth"])
    return Machine(
        "this",
        flops,
        number("memory", found["memory"]),
        bandwidth,
        # A single device sends to none.
        links.get("all-reduce", Link(float("inf"), 0.0)),
        None,
        # On a CPU the host's memory is the device's; on a GPU it was not measured.
        host=bandwidth,
        overlaps=bool(found["overlaps"]),
        efficiency=1.0,
        collectives=links,
        factors=factors,
        overhead=number("overhead", found.get("overhead", 0.0), above=False),
        cache=number("cache", found.get("cache", 0.0), above=False),
        platform=found["platform"],
    )


def write_machine(file: pathlib.Path, found: dict[str, Any]) -> None:
    write_whole(file, json_line(found, indent=1))


def shown(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1)
