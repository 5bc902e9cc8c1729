"""The pictures of a sweep's report, each a function of its rows; None where it has nothing.

Colours are those of Okabe and Ito, which stay apart for the colour-blind; markers differ
with them.
"""

import io
import textwrap
from collections.abc import Callable

import matplotlib
import numpy as np

from experiments.run.log import PARTS
from experiments.sweeps.rows import Row, by_label
from experiments.sweeps.verdicts import (
    amdahl_serial_share,
    critical_batch,
    median_rates,
    noise_scale,
)

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  after the choice of the backend

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
WIDTH = 9.0  # inches


def style(index: int) -> dict[str, str]:
    """Return a colour and a marker; pairs repeat after 56."""
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": MARKERS[(index + index // len(COLORS)) % len(MARKERS)],
    }


def png(figure) -> bytes:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()


def legend(figure, axes, entries: int) -> None:
    """Put the legend under the axes, where it covers no curve."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower left", frameon=False, fontsize=8,
        ncols=1 if entries > 0 and max(map(len, labels)) > 45 else 3,
    )  # fmt: skip


def names(rows: list[Row]) -> list[str]:
    """Return the names of the runs, long ones in several lines."""
    return [textwrap.fill(row.name.replace(",", ", "), 48) for row in rows]


def height(rows: list[Row]) -> float:
    """Return the inches that a line for each run takes."""
    lines = max(name.count("\n") + 1 for name in names(rows))
    return len(rows) * (0.12 + 0.12 * lines)


def name_runs(axes, rows: list[Row]) -> None:
    axes.set_yticks(range(len(rows)), names(rows), fontsize=7)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first on top


def losses(rows: list[Row]) -> bytes | None:
    """Validation loss against tokens and against the seconds spent in steps."""
    rows = [row for row in rows if len(row.curve()) > 1]
    if not rows:
        return None
    groups = by_label(rows)
    height = 3.6 + 0.2 * np.ceil(len(groups) / 3)
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(WIDTH, height), sharey=True, layout="constrained"
    )
    for index, (name, alike) in enumerate(groups.items()):
        for number, row in enumerate(alike):
            steps, tokens, loss = np.array(row.curve()).T
            at = row.seconds_at()
            seconds = [at[step] for step in steps]
            how = style(index) | {"ms": 4, "lw": 1, "alpha": 0.8}
            left.plot(tokens / 1e6, loss, label=None if number else name, **how)
            right.plot(seconds, loss, **how)
    left.set(xlabel="tokens (millions)", ylabel="validation loss (nats a token)")
    right.set(xlabel="seconds in steps")
    legend(figure, left, len(groups))
    return png(figure)


def scaling(rows: list[Row]) -> bytes | None:
    """Tokens/s, speed-up with its Amdahl fit, and efficiency against the degree."""
    rates = median_rates(rows)
    if not rates:
        return None
    figure, (speed, gain, share) = pyplot.subplots(
        1, 3, figsize=(WIDTH, 3.8), layout="constrained"
    )
    real = [row for row in rows if not row.emulated]
    largest = max(row.devices for row in real)
    ideal = np.linspace(1, largest, 50)
    gain.plot(ideal, ideal, color="#555555", ls="--", lw=1, label="ideal")
    share.axhline(100, color="#555555", ls="--", lw=1)
    for index, (name, found) in enumerate(rates.items()):
        degrees, values = np.array(list(found.items()), float).T
        how = style(index) | {"lw": 1}
        speed.plot(degrees, values / 1e3, label=name, **how)
        alike = by_label(real)[name]
        speed.scatter(
            [row.devices for row in alike],
            [row.rate / 1e3 for row in alike],
            color=how["color"], s=8, alpha=0.5,
        )  # fmt: skip
        relative, ups = degrees / degrees[0], values / values[0]
        serial = amdahl_serial_share(list(relative), list(ups))
        gain.plot(relative, ups, label=f"{name} (serial share {serial:.0%})", **how)
        fine = np.linspace(1, relative[-1], 50)
        gain.plot(fine, 1 / (serial + (1 - serial) / fine), color=how["color"], ls=":")
        share.plot(relative, 100 * ups / relative, **how)
    speed.set(xlabel="devices", ylabel="thousand tokens/s", ylim=(0, None))
    gain.set(xlabel="times the devices", ylabel="speed-up (dotted: Amdahl)", ylim=(0, None))
    share.set(xlabel="times the devices", ylabel="efficiency (%)", ylim=(0, None))
    for axes in (speed, gain, share):
        axes.xaxis.get_major_locator().set_params(integer=True)
    legend(figure, gain, len(rates))
    return png(figure)


def batch_sizes(rows: list[Row]) -> bytes | None:
    """Loss at equal tokens against the batch size, the critical one marked."""
    if len({row.batch_tokens for row in rows}) < 2:
        return None
    figure, axes = pyplot.subplots(figsize=(WIDTH * 0.7, 3.8), layout="constrained")
    for index, degree in enumerate(sorted({row.devices for row in rows})):
        alike = [row for row in rows if row.devices == degree]
        axes.plot(
            [row.batch_tokens for row in alike],
            [row.loss for row in alike],
            ls="none", mfc="none", ms=5 + 2.5 * index, label=f"{degree} device(s)",
            **style(index),
        )  # fmt: skip
    for value, ls, name in [
        (critical_batch(rows), ":", "critical, from this sweep"),
        (noise_scale(rows), "--", "gradient noise scale at the end"),
    ]:
        if value:
            axes.axvline(value, color="#555555", ls=ls, lw=1.2, label=name)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens in a batch", ylabel="validation loss at the end (nats)")
    axes.legend(frameon=False, fontsize=8)
    return png(figure)


def noise(rows: list[Row]) -> bytes | None:
    """The gradient noise scale over the run."""
    curves = {}
    for name, alike in by_label(rows).items():
        for row in alike:
            points = [
                (r["tokens"], r["noise_scale"])
                for r in row.of("train")
                if r.get("noise_scale")
            ]
            if len(points) > 1:
                curves[name] = points  # the last one, of most devices
    if not curves:
        return None
    figure, axes = pyplot.subplots(figsize=(WIDTH, 3.8), layout="constrained")
    for index, (name, points) in enumerate(curves.items()):
        tokens, scale = np.array(points).T
        axes.plot(
            tokens / 1e6, scale, lw=1, ms=4, markevery=0.1, label=name, **style(index)
        )
    axes.set_yscale("log")
    axes.set(xlabel="tokens (millions)", ylabel="gradient noise scale (tokens)")
    legend(figure, axes, len(curves))
    return png(figure)


def bars(rows: list[Row], fields: list[tuple[str, str]]) -> bytes | None:
    """Megabytes of each run, a panel for each (field of the summary, title)."""
    rows = [row for row in rows if all(field in row.summary for field, _ in fields)]
    if not rows:
        return None
    figure, panels = pyplot.subplots(
        1, len(fields), figsize=(WIDTH, 1.1 + height(rows)), sharey=True,
        layout="constrained",
    )  # fmt: skip
    for panel, (field, title) in zip(panels, fields, strict=True):
        values = [row.summary[field] / 1e6 for row in rows]
        panel.barh(range(len(rows)), values, color=COLORS[0], height=0.7)
        for place, value in enumerate(values):
            panel.text(value, place, f" {value:.3g}", va="center", fontsize=7)
        panel.set(xlabel=title, xlim=(0, 1.15 * max(values) or 1))
    name_runs(panels[0], rows)
    return png(figure)


def costs(rows: list[Row]) -> bytes | None:
    """Bytes on the wire and memory of a device."""
    return bars(
        rows,
        [
            ("sent_bytes", "sent by a device in a step (MB)"),
            ("peak_bytes", "memory of a device, compiled (MB)"),
        ],
    )


def parts(rows: list[Row]) -> bytes | None:
    """Where each run's seconds went."""
    figure, axes = pyplot.subplots(
        figsize=(WIDTH, 1.4 + height(rows)), layout="constrained"
    )
    start = np.zeros(len(rows))
    for index, part in enumerate(PARTS):
        seconds = np.array([row.summary["seconds"][part] for row in rows])
        axes.barh(
            range(len(rows)), seconds, left=start, height=0.7, label=part,
            color=COLORS[index % len(COLORS)],
        )  # fmt: skip
        start += seconds
    name_runs(axes, rows)
    axes.set(xlabel="seconds")
    axes.legend(frameon=False, ncols=len(PARTS), fontsize=8, loc="lower left",
                bbox_to_anchor=(0, 1))  # fmt: skip
    return png(figure)


FIGURES: dict[str, tuple[str, Callable[[list[Row]], bytes | None]]] = {
    "losses": ("Loss against tokens, and against seconds", losses),
    "scaling": ("Speed, speed-up and efficiency", scaling),
    "batch_sizes": ("Loss at equal tokens against the batch size", batch_sizes),
    "noise": ("The gradient noise scale", noise),
    "costs": ("Bytes and memory", costs),
    "parts": ("Where the time went", parts),
}
