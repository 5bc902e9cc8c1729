"""Pictures of the norms that runs with trace_norms logged, from a sweep's rows.

A picture has a panel for each kind of model and a curve for each run. The colour shows the
activation, the dash the initialiser, hollow markers that nothing was clipped, the length of
the curve the depth. If two runs would look the same, each run has its own colour and name
instead.
"""

import statistics
from collections.abc import Callable
from functools import partial

from matplotlib.lines import Line2D

from experiments.sweeps.looks import COLORS, WIDTH, legend, log_ticks, looks, png, pyplot
from experiments.sweeps.rows import Row
from lm.norms import ACTIVATION_RMS, GRADIENT_NORM

LINES = {
    "naive": ":", "xavier": "--", "he": "-", "orthogonal": "-.",
    "gpt2": (0, (6, 2, 1, 2, 1, 2)),
}  # fmt: skip
COLOR_OF = dict(zip(("sigmoid", "tanh", "relu", "gelu", "swiglu"), COLORS, strict=False))
COLUMNS = 3


def layer_curve(row: Row, prefix: str) -> list[tuple[int, float]]:
    """Return (layer from 1, median over the steps) of the norms under a prefix.

    Layers without a positive finite value are left out, because the axis is logarithmic.
    """
    records = row.of("train")
    names = {
        x for r in (*records[:1], *records[-1:]) for x in r
    }  # together they have all names
    values: dict[int, list[float]] = {}
    for name in (name for name in names if name.startswith(f"{prefix}layers/")):
        found = [record[name] for record in records if record.get(name)]
        if found:
            values[int(name.rpartition("/")[2]) + 1] = found
    return [(layer, statistics.median(found)) for layer, found in sorted(values.items())]


def kind(row: Row) -> str:
    """Name the model of a row without its activation, initialiser and depth."""
    config = row.config
    if cell := config.get("model.cell"):
        return {"rnn": "plain RNN", "lstm": "LSTM", "gru": "GRU"}[cell]
    without = ["residual"] if not config["model.residual"] else []
    without += ["norm"] if config["model.norm"] == "none" else []
    return "transformer" + (f" without {' and '.join(without)}" if without else "")


def by_layer(rows: list[Row], prefix: str, label: str) -> bytes | None:
    """Draw the medians by layer of the runs that logged them, one panel for each model."""
    curves = [(row, curve) for row in rows if (curve := layer_curve(row, prefix))]
    if not curves:
        return None
    hows, handles = curve_looks(curves)
    kinds = list(dict.fromkeys(kind(row) for row, _ in curves))
    num_lines = -(-len(kinds) // COLUMNS)
    figure, grid = pyplot.subplots(
        num_lines, COLUMNS, figsize=(WIDTH, 0.9 + 2.6 * num_lines),
        sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    panels = dict(zip(kinds, grid.flat, strict=False))
    for (row, curve), how in zip(curves, hows, strict=True):
        panels[kind(row)].plot(*zip(*curve, strict=True), **how)
    for name, axes in panels.items():
        axes.set_title(name, fontsize=9)
        log_ticks(axes.yaxis, [value for _, curve in curves for _, value in curve])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("layer")
    for axes in list(grid.flat)[len(kinds) :]:
        axes.set_axis_off()
    for line in grid:
        line[0].set_ylabel(label)
    legend(figure, handles)
    return png(figure)


def curve_looks(
    curves: list[tuple[Row, list[tuple[int, float]]]],
) -> tuple[list[dict], list[Line2D]]:
    """Return how to draw each run, and a legend's entries."""
    rows = [row for row, _ in curves]
    told = {repr((kind(row), curve[-1][0], look(row))) for row, curve in curves}
    if len(told) < len(rows):
        return looks(rows, rows)
    return [look(row) for row in rows], keys(rows)


def look(row: Row) -> dict[str, object]:
    clipped = row.config["optim.clip_norm"] > 0
    return {
        "color": COLOR_OF[row.config["model.activation"]],
        "ls": LINES[row.config["model.init"]],
        "lw": 1,
        "marker": "o",
        "ms": 3 if clipped else 5,
        "mfc": None if clipped else "none",
    }


def keys(rows: list[Row]) -> list[Line2D]:
    """Return what the legend shows: the activations, initialisers and clipping."""
    activations = {row.config["model.activation"] for row in rows}
    initializers = {row.config["model.init"] for row in rows}
    found = [
        Line2D([], [], color=color, label=name)
        for name, color in COLOR_OF.items()
        if name in activations
    ]
    found += [
        Line2D([], [], color="#555555", ls=line, label=name)
        for name, line in LINES.items()
        if name in initializers
    ]
    if any(not row.config["optim.clip_norm"] for row in rows):
        how = {"color": "#555555", "ls": "none", "marker": "o", "mfc": "none"}
        found.append(Line2D([], [], label="not clipped", **how))
    return found


NORM_FIGURES: dict[str, tuple[str, Callable[[list[Row]], bytes | None]]] = {
    "gradient_norms": (
        "Gradient norm by layer (median over steps, before clipping)",
        partial(by_layer, prefix=GRADIENT_NORM, label="gradient norm"),
    ),
    "activation_rms": (
        "Activation RMS by layer (median over steps)",
        partial(by_layer, prefix=ACTIVATION_RMS, label="root mean square"),
    ),
}
