"""A plan as a table, as plan.json and as a page with a picture."""

import pathlib
from typing import Any

from experiments.planning.advice import named
from experiments.planning.regime import Regime
from experiments.processes.files import json_line, write_whole
from experiments.processes.messages import human, size
from experiments.sweeps.looks import COLORS, WIDTH, png, pyplot
from experiments.sweeps.tables import Table
from experiments.sweeps.template import Page, write_page, write_picture
from parallel.cost.machine import Hardware
from parallel.cost.plan import Candidate, Model
from parallel.cost.step_time import product_flops

HEAD = (
    "strategy", "mesh", "microbatches", "remat", "memory", "fits", "s a step", "tokens/s",
    "MFU", "sent", "collectives", "bound by",
)  # fmt: skip
MOST_BARS = 12


def step_flops(model: Model) -> float:
    """Return the FLOPs of a step without recomputation: three forward passes."""
    forward = product_flops(model.layer) * model.num_layers + product_flops(model.outer)
    return 3 * forward * model.rows


def mfu(one: Candidate, model: Model, hardware: Hardware) -> float:
    """Return the model's FLOP/s as a share of the devices' largest (Chowdhery et al.)."""
    table = hardware.machine.flops
    rates = table.get(model.compute) or table["float32"]
    most = max(rate for _, rate in rates)
    return step_flops(model) / one.seconds / hardware.num_devices / most


def table(found: list[Candidate], model: Model, hardware: Hardware, top: int) -> Table:
    rows = []
    for one in found[:top]:
        over = one.memory_bytes - one.limit
        rows.append(
            (
                one.strategy,
                " x ".join(f"{axis} {n}" for axis, n in one.degrees.items()),
                str(one.accumulation),
                one.remat,
                size(one.memory_bytes),
                "yes" if one.fits else f"no, {size(over)} too much",
                f"{one.seconds:.3g}",
                human(model.rows * model.seq_len / one.seconds),
                f"{mfu(one, model, hardware):.0%}",
                size(one.sent_bytes),
                f"{one.collectives:g}",
                one.bound,
            )
        )
    return Table("Candidates", "The best first.", HEAD, rows)


def memory_table(found: list[Candidate], top: int) -> Table:
    parts = list(found[0].memory)
    rows = [
        (named(one), *(size(one.memory[part]) for part in parts)) for one in found[:top]
    ]
    return Table("Memory of a device, by part", "", ("candidate", *parts), rows)


def all_tables(
    found: list[Candidate], model: Model, hardware: Hardware, top: int
) -> list[Table]:
    parts = memory_table(found, top), time_table(found, top)
    return [table(found, model, hardware, top), *parts]


def time_table(found: list[Candidate], top: int) -> Table:
    parts = list(dict.fromkeys(part for one in found[:top] for part in one.time))
    rows = [
        (named(one), *(f"{one.time.get(part, 0.0):.3g}" for part in parts))
        for one in found[:top]
    ]
    note = "`hidden` is communication beside products; it is not in the sum."
    return Table("Seconds of a step, by part", note, ("candidate", *parts), rows)


def as_json(one: Candidate, model: Model, hardware: Hardware) -> dict[str, Any]:
    degrees = {axis: 1 for axis in ("slice", "data", "fsdp", "tensor", "stage")}
    return {
        "strategy": one.strategy,
        **degrees,
        **one.degrees,
        "chunks": one.chunks,
        "microbatches": one.accumulation,
        "accumulation": one.accumulation,
        "remat": one.remat,
        "fits": one.fits,
        "seconds": one.seconds,
        "tokens_per_second": model.rows * model.seq_len / one.seconds,
        "mfu": mfu(one, model, hardware),
        "memory_bytes": one.memory_bytes,
        "limit_bytes": one.limit,
        "sent_bytes": one.sent_bytes,
        "collectives": one.collectives,
        "bound": one.bound,
        "memory": one.memory,
        "time": one.time,
    }


def write_plan(
    folder: pathlib.Path,
    found: list[Candidate],
    model: Model,
    hardware: Hardware,
    words: list[str],
    kind: Regime | None,
    compiled: list[dict[str, Any]],
    top: int,
) -> pathlib.Path:
    """Write plan.json and plan.html; return the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "hardware": hardware.name,
        "devices": hardware.num_devices,
        "regime": kind and kind._asdict(),
        "reasons": words,
        "compiled": compiled,
        "candidates": [as_json(one, model, hardware) for one in found],
    }
    write_whole(folder / "plan.json", json_line(content, indent=1))
    shown = write_picture(folder, "bounds", "What bounds each candidate", bounds(found))
    candidates, *parts = all_tables(found, model, hardware, top)
    page = Page(
        title=f"Plan for {hardware.name}",
        notes=[kind.reason] if kind else [],
        heading="Why",
        advice=words,
        sections=[candidates, shown, *parts],
    )
    return write_page(folder, "plan", page)


def bounds(found: list[Candidate]) -> bytes:
    """Draw the seconds of the best candidates by part, and their memory by part."""
    shown = found[:MOST_BARS][::-1]
    figure, every = pyplot.subplots(
        1, 2, figsize=(WIDTH, 1.6 + 0.32 * len(shown)), sharey=True, layout="constrained"
    )
    times = [{k: v for k, v in one.time.items() if k != "hidden"} for one in shown]
    memories = [{k: v / 1e9 for k, v in one.memory.items()} for one in shown]
    for axes, values, label in zip(
        every, (times, memories), ("seconds a step", "GB of a device"), strict=True
    ):
        bars(axes, values)
        axes.set_xlabel(label)
    every[1].axvline(shown[0].limit / 1e9, color="#555555", ls="--", lw=1)
    every[0].set_yticks(range(len(shown)), [named(one) for one in shown], fontsize=7)
    return png(figure)


def bars(axes, values: list[dict[str, float]]) -> None:
    left = [0.0] * len(values)
    for index, part in enumerate(dict.fromkeys(part for one in values for part in one)):
        widths = [one.get(part, 0.0) for one in values]
        axes.barh(
            range(len(values)), widths, left=left, label=part,
            color=COLORS[index % len(COLORS)], hatch="//" * (index >= len(COLORS)),
        )  # fmt: skip
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.legend(frameon=False, fontsize=6, ncols=3, loc="upper center",
                bbox_to_anchor=(0.5, -0.2))  # fmt: skip
