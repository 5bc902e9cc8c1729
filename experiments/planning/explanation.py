"""The table of what a step sends, beside what its strategy should send."""

from jax.sharding import Mesh

from configs.base import Experiment
from experiments.processes.messages import human, size
from experiments.run.steps import batch_shapes, empty_rows
from experiments.run.trial import Trial, build_trial
from parallel.cost.closed_forms import cut_of
from parallel.cost.ledger import Entry, step_ledger
from parallel.program import SLICE

SMALL = 0.01  # a smaller share of the bytes is never unexpected
HEAD = ("collective", "axes", "type", "times", "elements", "sent", "overlaps", "from")


def cells(entry: Entry) -> tuple[str, ...]:
    overlap = "nothing" if entry.overlap is None else f"{entry.overlap} computations"
    return (
        entry.kind,
        " x ".join(entry.axes) or "-",
        " ".join(entry.dtypes),
        f"{entry.count:.3g}",
        human(entry.elements),
        size(entry.sent_bytes),
        overlap,
        entry.source or "the compiler",
    )


def unexpected(config: Experiment, entries: list[Entry]) -> list[Entry]:
    kinds = config.parallel.row.kinds(config.parallel)
    total = sum(entry.sent_bytes for entry in entries)
    return [
        entry
        for entry in entries
        if entry.kind not in kinds and entry.sent_bytes > SMALL * total
    ]


def explain(config: Experiment, mesh: Mesh) -> str:
    """Return the table of the ledger, its total, and what the closed form says."""
    trial = build_trial(config, config.data.vocab_size, mesh)
    entries = step_ledger(trial.step, mesh)
    rows = [HEAD, *map(cells, entries)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = [
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
    lines += ["", *against_closed_form(config, trial, mesh, entries)]
    for entry in unexpected(config, entries):
        lines.append(
            f"unexpected                 {entry.kind} over {' x '.join(entry.axes)}: "
            f"{size(entry.sent_bytes)}, from {entry.source or 'the compiler'}"
        )
    return "\n".join(lines)


def against_closed_form(
    config: Experiment, trial: Trial, mesh: Mesh, entries: list[Entry]
) -> list[str]:
    """Return the lines of the ledger's total and of what it should be."""
    total = sum(entry.sent_bytes for entry in entries)
    lines = [f"a device sends in a step   {size(total)}"]
    if SLICE in mesh.shape:
        across = sum(entry.sent_bytes for entry in entries if SLICE in entry.axes)
        lines += [f"of this, between slices    {size(across)}"]
    expected = expected_bytes(config, trial, mesh)
    if expected is None:
        return [*lines, "closed form                none for this strategy"]
    if not expected:
        return lines
    return [
        *lines,
        f"closed form                {size(expected)}; the program differs by "
        f"{total / expected - 1:+.2%}",
    ]


def expected_bytes(config: Experiment, trial: Trial, mesh: Mesh) -> float | None:
    """Return what a device should send in a step; None if there is no closed form."""
    params = trial.program.abstract_portable.params
    rows = empty_rows(*batch_shapes(trial.config)[-1])
    cut = cut_of(trial.task, params, rows, mesh.devices.flat[0].platform)
    return config.parallel.row.sent_bytes(config.parallel, params, mesh, cut)
