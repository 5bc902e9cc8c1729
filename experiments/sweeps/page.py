"""The report of a sweep: its tables, its pictures, and the pages made of them."""

import base64
import json
import pathlib
import re
from typing import NamedTuple

import jinja2

from experiments.processes.messages import human, size
from experiments.sweeps.figures import FIGURES
from experiments.sweeps.norm_figures import NORM_FIGURES
from experiments.sweeps.rows import Row, read_rows
from experiments.sweeps.verdicts import Verdict, recommendation, utilisation, verdict


class Table(NamedTuple):
    title: str
    note: str
    head: list[str]
    rows: list[list[str]]

    @staticmethod
    def is_number(cell: str) -> bool:
        return bool(re.fullmatch(r"[-+]?[\d.]+%?( ?[kMGTP]?B?)?|", cell))


class Picture(NamedTuple):
    title: str
    file: str  # relative to the report
    inline: str  # base64


def figures_table(rows: list[Row], limit: float | None) -> Table:
    def cells(row: Row) -> list[str]:
        s = row.summary
        used = utilisation(row, limit)
        scale = s.get("noise_scale")
        return [
            row.name,
            f"{s['devices']}" + (" emulated" if row.emulated else ""),
            f"{row.config['data.batch_size']}",
            human(s["tokens"]),
            f"{row.loss:.4f}",
            f"{s['val_perplexity']:.2f}",
            "" if s["shifted_loss"] is None else f"{s['shifted_loss']:.4f}",
            human(row.rate),
            "" if used is None else f"{used:.0%}",
            size(s["sent_bytes"]) if "sent_bytes" in s else "",
            size(s["peak_bytes"]) if "peak_bytes" in s else "",
            size(s["peak_memory_bytes"]),
            human(scale) if scale else "",
        ]

    head = ["run", "devices", "batch", "tokens", "loss", "perplexity", "elsewhere"]
    head += ["tokens/s", "FLOP share", "sent", "memory", "observed", "noise scale"]
    note = (
        "Loss: validation, nats a token; elsewhere: on held-out text of another kind. FLOP "
        "share: the model's own FLOPs (no recomputation) over what this machine reaches in "
        "products of large matrices. Sent: by a device in a step. Memory: of a device in "
        "the compiled step; observed: peak of a device, or of the process on a CPU. Noise "
        "scale: of the gradient at the end, in tokens."
    )
    return Table("The runs", note, head, [cells(row) for row in rows])


def verdicts_table(rows: list[Row], limit: float | None) -> Table:
    note = (
        "Each run against the one on the fewest devices that is else the same. Quality: "
        "against the best run on that number of devices. Generalisation: the gap from "
        "training to validation loss, and the loss on text of another kind; losses within "
        "0.5 % are equal."
    )
    head = ["run", *(field.capitalize() for field in Verdict._fields)]
    body = [[row.name, *verdict(row, rows, limit)] for row in rows]
    return Table("Was it worth it?", note, head, body)


def missing_table(missing: dict[str, str]) -> Table:
    body = [[name, error] for name, error in missing.items()]
    return Table("Not complete", "The same sweep command runs them.", ["run", "why"], body)


def pictures(rows: list[Row], folder: pathlib.Path) -> list[Picture]:
    (folder / "figures").mkdir(exist_ok=True)
    found = []
    for name, (title, draw) in (FIGURES | NORM_FIGURES).items():
        if image := draw(rows):
            file = f"figures/{name}.png"
            (folder / file).write_bytes(image)
            found.append(Picture(title, file, base64.b64encode(image).decode()))
    return found


def notes(rows: list[Row], machine: dict | None) -> list[str]:
    first = rows[0].summary
    said = [
        f"{len(rows)} complete runs on {first['device_kind']}; Python "
        f"{first['versions']['python']}, JAX {first['versions']['jax']}."
    ]
    if machine:
        said.append(
            f"The machine: {machine['cores']} cores, {machine['devices']} x "
            f"{machine['device_kind']}; {human(machine['product_limit'])}FLOP/s in "
            "products of float32 matrices."
        )
    if any(row.emulated for row in rows):
        said.append(
            "Some of these devices are emulated: they share the machine's cores, so their "
            "number says nothing about speed. Bytes, memory and losses are as on real ones."
        )
    return said


def write_report(folder: pathlib.Path) -> pathlib.Path:
    """Write the report of the sweep in `folder`; ValueError if it has no complete run."""
    rows, missing = read_rows(folder)
    if not rows:
        raise ValueError(f"{folder} has no complete run yet: {missing}")
    file = folder / "machine.json"
    machine = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    limit = machine and machine["product_limit"]
    tables = [verdicts_table(rows, limit), figures_table(rows, limit)]
    if missing:
        tables.append(missing_table(missing))
    content = {
        "title": f"Sweep {folder.name}",
        "notes": notes(rows, machine),
        "advice": recommendation(rows),
        "tables": tables,
        "pictures": pictures(rows, folder),
    }
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates")
    for kind in ("html", "md"):
        environment = jinja2.Environment(loader=loader, autoescape=kind == "html")
        page = environment.get_template(f"report.{kind}.jinja").render(content)
        (folder / f"report.{kind}").write_text(page, encoding="utf-8")
    return folder / "report.html"
