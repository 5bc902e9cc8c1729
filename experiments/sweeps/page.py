"""The report of a sweep: its tables, its pictures, its HTML and Markdown pages."""

import json
import pathlib

from experiments.processes.messages import human
from experiments.run.phases.account import told_phases
from experiments.run.summary import told_stragglers
from experiments.sweeps.advice import recommendation
from experiments.sweeps.figures import FIGURES
from experiments.sweeps.norm_figures import NORM_FIGURES
from experiments.sweeps.rows import Row, baselines, read_paths, read_rows
from experiments.sweeps.run_table import Value, runs_table
from experiments.sweeps.tables import Table
from experiments.sweeps.template import Page, Picture, write_page, write_picture
from experiments.sweeps.verdicts import SAME, verdict


def verdicts_table(rows: list[Row], base_of: dict[str, Row], limit: Value) -> Table:
    note = (
        "Each run is compared with its baseline: the run on the fewest devices with the "
        "same settings otherwise. A run that has no other baseline is its own."
    )
    meanings = (
        ("Time", "tokens a second, and the speed-up from each added device"),
        (
            "Quality",
            "validation loss against the lowest on the baseline's number of devices; a tie "
            f"within {SAME:.1%}",
        ),
        ("Utilisation", "how much of the machine was used"),
        (
            "Generalisation",
            "the gap from training to validation loss, and the loss on text of another "
            "kind (elsewhere)",
        ),
    )
    head = ["run", "baseline", *(name for name, _ in meanings)]
    body = [
        [row.name, "" if base is row else base.name, *verdict(row, rows, base, limit)]
        for row in rows
        for base in [base_of[row.name]]
    ]
    return Table("Was it worth it?", note, head, body, meanings=meanings)


def missing_table(missing: dict[str, str]) -> Table:
    body = [[name, error] for name, error in missing.items()]
    return Table("Not complete", "The same sweep command runs them.", ["run", "why"], body)


def pictures(rows: list[Row], folder: pathlib.Path) -> list[Picture]:
    return [
        write_picture(folder, name, title, image)
        for name, (title, draw) in (FIGURES | NORM_FIGURES).items()
        if (image := draw(rows))
    ]


def notes(rows: list[Row], machine: dict | None) -> list[str]:
    kinds = ", ".join(dict.fromkeys(row.summary["device_kind"] for row in rows))
    versions = rows[0].summary["versions"]
    said = [
        f"{len(rows)} complete runs on {kinds}; Python {versions['python']}, JAX "
        f"{versions['jax']}."
    ]
    for row in rows:
        if told := told_stragglers(row.summary):
            said.append(f"{row.name} had stragglers: {told}.")
        said += [f"{row.name}, {line}." for line in told_phases(row.summary)]
    if machine:
        said.append(
            f"The machine: {machine['cores']} cores, {machine['devices']} x "
            f"{machine['device_kind']}; {human(machine['product_limit'])}FLOP/s in "
            "products of large matrices."
        )
    if any(row.emulated for row in rows):
        said.append(
            "Some devices are emulated: they share the machine's cores, so their speed "
            "says nothing about real ones. Bytes, memory and losses are as on real ones."
        )
    return said


def read_machine(folder: pathlib.Path) -> dict | None:
    """Return the measurements of a sweep's machine; None if there are none."""
    file = folder / "machine.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def diff(paths: list[pathlib.Path]) -> str:
    """Tabulate for a terminal the fields that differ between runs, and the results."""
    rows = read_paths(paths)
    machine = read_machine(paths[0]) if len(paths) == 1 else None
    table = runs_table(rows, machine and machine["product_limit"])
    meanings = [f"- {name}: {meaning}" for name, meaning in table.meanings]
    return "\n".join([table.markdown(padded=True), "", table.note, "", *meanings])


def write_report(folder: pathlib.Path) -> pathlib.Path:
    """Write the report of the sweep in `folder`; ValueError if it has no complete run."""
    rows, missing = read_rows(folder)
    if not rows:
        raise ValueError(f"{folder} has no complete run yet: {missing}")
    machine = read_machine(folder)
    limit = machine and machine["product_limit"]
    base_of = baselines(rows)
    tables = [verdicts_table(rows, base_of, limit), runs_table(rows, limit)]
    if missing:
        tables.append(missing_table(missing))
    page = Page(
        title=f"Sweep {folder.name}",
        notes=notes(rows, machine),
        heading="What to choose",
        advice=recommendation(rows, base_of),
        sections=[*tables, *pictures(rows, folder)],
    )
    return write_page(folder, "report", page)
