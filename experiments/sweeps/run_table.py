"""The table of runs: the fields that differ, the results, the best values marked."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments.processes.messages import human, size
from experiments.sweeps.advice import why_not_yet
from experiments.sweeps.rows import Row
from experiments.sweeps.tables import Table, digits
from experiments.sweeps.verdicts import SAME, utilisation

# Fields of logging and saving; no result depends on them.
WATCHING = (
    "eval_every", "eval_batches", "save_every", "keep", "prompt", "trace_norms",
    "check_every", "deadline", "parallel.outlier", "data.cache", "data.tfds_dir",
    "fingerprint",
)  # fmt: skip

Value = float | None


class Column(NamedTuple):
    """A result of a run."""

    name: str
    meaning: str
    value: Callable[[Row, Value], Value]  # takes a device's FLOP/s; None: not measured
    shown: Callable[[float], str] = digits
    best: Callable[[Sequence[float]], float] | None = None  # min or max, if one is better
    needs: str = ""  # what a run needs to have this result
    of_speed: bool = False  # not marked where devices are emulated
    of_text: bool = False  # not comparable between texts or tokenizers


COLUMNS = (
    Column(
        "loss",
        "validation loss at the end, nats a token",
        lambda row, limit: row.loss,
        best=min,
        of_text=True,
    ),
    Column(
        "loss ±",
        "half the width of the loss's 95 % interval over the validation documents",
        lambda row, limit: row.half_interval,
        needs="runs whose summary has it",
    ),
    Column(
        "perplexity",
        "e to the power of that loss: a choice among so many equally likely tokens "
        "would be as uncertain",
        lambda row, limit: row.summary["val_perplexity"],
        best=min,
        of_text=True,
    ),
    Column(
        "loss elsewhere",
        "loss on held-out text of another kind",
        lambda row, limit: row.summary.get("shifted_loss"),
        best=min,
        needs="a text of another kind (data.shifted_path or data.shifted_split)",
        of_text=True,
    ),
    Column(
        "tokens",
        "target tokens trained on",
        lambda row, limit: row.summary["tokens"],
        human,
    ),
    Column(
        "epochs",
        "how often the training text was seen",
        lambda row, limit: row.summary.get("epochs"),
        lambda value: f"{value:.3g}",
        needs="runs whose summary counts them",
    ),
    Column(
        "tokens/s",
        "the median over steps, of all devices together",
        lambda row, limit: row.rate,
        human,
        best=max,
        of_speed=True,
    ),
    Column(
        "FLOP share",
        "the model's own FLOPs (no recomputation) in a second, over what this machine "
        "reaches in products of large matrices",
        lambda row, limit: utilisation(row, limit),
        "{:.0%}".format,
        best=max,
        needs="machine.json in the sweep's folder",
        of_speed=True,
    ),
    Column(
        "sent",
        "bytes that a device sends in a step, from the compiled program",
        lambda row, limit: row.summary.get("sent_bytes"),
        size,
        best=min,
        needs="a compiled step",
    ),
    Column(
        "memory",
        "the memory of the compiled step on a device",
        lambda row, limit: row.summary.get("peak_bytes"),
        size,
        best=min,
        needs="a compiled step",
    ),
    Column(
        "memory, observed",
        "the peak of a device; on a CPU that of the whole process",
        lambda row, limit: row.summary["peak_memory_bytes"],
        size,
    ),
    Column(
        "noise scale",
        "the gradient noise scale at the end, in tokens: about the batch size beyond "
        "which more rows mostly cost tokens",
        lambda row, limit: row.summary.get("noise_scale"),
        human,
        needs="two devices with shard_map, pmap, zero1 or zero2, or microbatches",
    ),
)


def runs_table(rows: list[Row], limit: float | None = None) -> Table:
    """Tabulate the fields that differ and the results; the best values are marked.

    `limit` is the FLOP/s of one device (of a CPU: of all its cores), where it is known.
    """
    fields = differing(rows)
    values = {c: [c.value(row, limit) for row in rows] for c in COLUMNS}
    shown = [c for c in COLUMNS if any(value is not None for value in values[c])]
    body = [
        [
            row.name,
            *(cells[i] for cells in fields.values()),
            *(cell(row, column, values[column][i]) for column in shown),
        ]
        for i, row in enumerate(rows)
    ]
    same_text = len({row.config.get("fingerprint") for row in rows}) == 1
    best = {
        (place, 1 + len(fields) + index)
        for index, column in enumerate(shown)
        if same_text or not column.of_text
        for place in best_places(rows, column, values[column])
    }
    note = (
        "The first columns are the settings that differ between the runs, the others are "
        f"the results. Bold marks the best value of a column and values within {SAME:.1%} "
        "of it; if these are all values, none is bold."
    )
    if any(row.emulated for row in rows):
        note += " Emulated devices share the machine's cores, so speeds are not marked."
    if not same_text:
        note += (
            " The runs differ in text, tokenizer or row length, so their losses do not "
            "compare."
        )
    if unmeasured := [f"{c.name} (needs {c.needs})" for c in COLUMNS if c not in shown]:
        note += f" Not measured: {'; '.join(unmeasured)}."
    head = ["run", *fields, *(c.name for c in shown)]
    meanings = tuple((c.name, c.meaning) for c in shown)
    return Table("The runs", note, head, body, frozenset(best), meanings)


def cell(row: Row, column: Column, value: Value) -> str:
    if value is None:
        return ""
    if not math.isfinite(value):
        return "not finite"
    early = column.name == "noise scale" and why_not_yet(row)
    return column.shown(value) + (" (too early)" if early else "")


def best_places(rows: list[Row], column: Column, values: list[Value]) -> list[int]:
    """Return the rows with the best value of a column, or one that ties with it."""
    known = {
        place: value
        for place, (row, value) in enumerate(zip(rows, values, strict=True))
        if value is not None
        and math.isfinite(value)
        and not (column.of_speed and row.emulated)
    }
    if not column.best or len(known) < 2:
        return []
    best = column.best(known.values())
    places = [p for p, value in known.items() if abs(value - best) <= SAME * abs(best)]
    return places if len(places) < len(known) else []


def differing(rows: list[Row]) -> dict[str, list[str]]:
    """Return field -> its value in each run, for the fields that differ between runs.

    A field is named by the last part of its dotted name if that is unique. parallel.data is
    left out if it equals the number of devices.
    """
    names = dict.fromkeys(name for row in rows for name in row.config)
    found = {"devices": [f"{r.devices}{' emulated' if r.emulated else ''}" for r in rows]}
    numbers = [str(row.devices) for row in rows]
    for name in names:
        cells = [str(row.config.get(name, "")) for row in rows]
        said = name == "parallel.data" and cells == numbers
        if name not in WATCHING and not said:
            found[name] = cells
    found = {name: cells for name, cells in found.items() if len(set(cells)) > 1}
    last = [name.rpartition(".")[2] for name in found]
    return {
        short if last.count(short) == 1 else name: cells
        for (name, cells), short in zip(found.items(), last, strict=True)
    }
