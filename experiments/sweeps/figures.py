"""The pictures of a sweep's report: functions of its rows; None if there is no data."""

import textwrap
from collections.abc import Callable

import numpy as np

from experiments.processes.messages import size
from experiments.run.survival.clock import PARTS
from experiments.run.survival.goodput import LOST, OTHER, RESTART
from experiments.sweeps.advice import critical_batch, noise_scale
from experiments.sweeps.looks import (
    COLORS,
    WIDTH,
    legend,
    log_ticks,
    looks,
    plain_ticks,
    png,
    pyplot,
    style,
    ticker,
)
from experiments.sweeps.rows import Row, by_label
from experiments.sweeps.verdicts import amdahl_serial_share, devices, median_rates

MOST_LINES, MOST_BARS = 56, 24  # more cannot be distinguished


def lowest(rows: list[Row], most: int) -> list[Row]:
    """Return the runs with the lowest losses, in the order of the sweep."""
    kept = sorted(rows, key=lambda row: row.loss)[:most]
    return [row for row in rows if row in kept]


def tell_left_out(figure, rows: list[Row], shown: list[Row]) -> None:
    if len(shown) < len(rows):
        text = f"the {len(shown)} runs with the lowest loss, of {len(rows)}"
        figure.suptitle(text, fontsize=8)


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
    every = [row for row in rows if len(row.curve()) > 1]
    if not every:
        return None
    shown = lowest(every, MOST_LINES)
    hows, handles = looks(rows, shown)
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(WIDTH, 3.6 + 0.2 * np.ceil(len(handles) / 3)), sharey=True,
        layout="constrained",
    )  # fmt: skip
    for row, how in zip(shown, hows, strict=True):
        steps, tokens, loss = np.array(row.curve()).T
        at = row.seconds_at()
        left.plot(tokens, loss, **how)
        right.plot([at[step] for step in steps], loss, **how)
    left.set(xlabel="tokens", ylabel="validation loss (nats a token)")
    right.set(xlabel="seconds in steps")
    plain_ticks(left.xaxis, left.yaxis, right.xaxis)
    legend(figure, handles)
    tell_left_out(figure, every, shown)
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
        speed.plot(degrees, values, label=name, **how)
        alike = by_label(real)[name]
        speed.scatter(
            [row.devices for row in alike],
            [row.rate for row in alike],
            color=how["color"], s=8, alpha=0.5,
        )  # fmt: skip
        relative, ups = degrees / degrees[0], values / values[0]
        serial = amdahl_serial_share(list(relative), list(ups))
        gain.plot(relative, ups, label=f"{name} (serial share {serial:.0%})", **how)
        fine = np.linspace(1, relative[-1], 50)
        gain.plot(fine, 1 / (serial + (1 - serial) / fine), color=how["color"], ls=":")
        share.plot(relative, 100 * ups / relative, **how)
    speed.set(xlabel="devices", ylabel="tokens/s", ylim=(0, None))
    gain.set(xlabel="times the devices", ylabel="speed-up (dotted: Amdahl)", ylim=(0, None))
    share.set(xlabel="times the devices", ylabel="efficiency (%)", ylim=(0, None))
    for axes in (speed, gain, share):
        axes.xaxis.get_major_locator().set_params(integer=True)
        plain_ticks(axes.xaxis, axes.yaxis)
    legend(figure, gain.get_legend_handles_labels()[0])
    return png(figure)


def batch_sizes(rows: list[Row]) -> bytes | None:
    """Loss at the end against the batch size, the critical one marked."""
    if len({row.batch_tokens for row in rows}) < 2:
        return None
    figure, axes = pyplot.subplots(figsize=(WIDTH * 0.7, 3.8), layout="constrained")
    for index, degree in enumerate(sorted({row.devices for row in rows})):
        alike = [row for row in rows if row.devices == degree]
        axes.plot(
            [row.batch_tokens for row in alike],
            [row.loss for row in alike],
            ls="none", mfc="none", ms=5 + 2.5 * index, label=devices(degree),
            **style(index),
        )  # fmt: skip
    for value, ls, name in [
        (critical_batch(rows), ":", "critical, from this sweep"),
        (noise_scale(rows), "--", "gradient noise scale at the end"),
    ]:
        if value:
            axes.axvline(value, color="#555555", ls=ls, lw=1.2, label=name)
    sizes = [row.batch_tokens for row in rows]
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(sizes)))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    plain_ticks(axes.xaxis, axes.yaxis)
    axes.set(xlabel="tokens in a batch", ylabel="validation loss at the end (nats)")
    axes.legend(frameon=False, fontsize=8)
    return png(figure)


def noise(rows: list[Row]) -> bytes | None:
    """The gradient noise scale over the run."""
    curves = {row.name: noise_curve(row) for row in rows}
    every = [row for row in rows if len(curves[row.name]) > 1]
    if not every:
        return None
    shown = lowest(every, MOST_LINES)
    hows, handles = looks(rows, shown)
    figure, axes = pyplot.subplots(
        figsize=(WIDTH, 3.6 + 0.2 * np.ceil(len(handles) / 3)), layout="constrained"
    )
    for row, how in zip(shown, hows, strict=True):
        axes.plot(*zip(*curves[row.name], strict=True), markevery=0.1, **how)
    log_ticks(axes.yaxis, [scale for row in shown for _, scale in curves[row.name]])
    axes.set(xlabel="tokens", ylabel="gradient noise scale (tokens)")
    plain_ticks(axes.xaxis)
    legend(figure, handles)
    tell_left_out(figure, every, shown)
    return png(figure)


def noise_curve(row: Row) -> list[tuple[int, float]]:
    """Return (tokens, noise scale)."""
    return [
        (r["tokens"], r["noise_scale"]) for r in row.of("train") if r.get("noise_scale")
    ]


def bars(rows: list[Row], fields: list[tuple[str, str]]) -> bytes | None:
    """Bytes of each run, a panel for each (field of the summary, title)."""
    every = [row for row in rows if all(field in row.summary for field, _ in fields)]
    if not every:
        return None
    rows = lowest(every, MOST_BARS)
    figure, panels = pyplot.subplots(
        1, len(fields), figsize=(WIDTH, 1.1 + height(rows)), sharey=True,
        layout="constrained",
    )  # fmt: skip
    for panel, (field, title) in zip(panels, fields, strict=True):
        values = [row.summary[field] for row in rows]
        panel.barh(range(len(rows)), values, color=COLORS[0], height=0.7)
        for place, value in enumerate(values):
            panel.text(value, place, f" {size(value)}", va="center", fontsize=7)
        panel.set(xlabel=title, xlim=(0, 1.25 * max(values) or 1))
        panel.xaxis.set_major_locator(ticker.MaxNLocator(4))
        plain_ticks(panel.xaxis)
    name_runs(panels[0], rows)
    tell_left_out(figure, every, rows)
    return png(figure)


def costs(rows: list[Row]) -> bytes | None:
    """Bytes on the wire and memory of a device."""
    return bars(
        rows,
        [
            ("sent_bytes", "sent by a device in a step (bytes)"),
            ("peak_bytes", "memory of a device, compiled (bytes)"),
        ],
    )


def parts(rows: list[Row]) -> bytes | None:
    """Where each run's seconds went, those of its restarts too."""
    shown = (*PARTS, LOST, RESTART, OTHER)
    spent = [
        row.summary.get("goodput", {}).get("seconds") or row.summary["seconds"]
        for row in lowest(rows, MOST_BARS)
    ]
    every, rows = rows, lowest(rows, MOST_BARS)
    figure, axes = pyplot.subplots(
        figsize=(WIDTH, 1.4 + height(rows)), layout="constrained"
    )
    start = np.zeros(len(rows))
    for index, part in enumerate(shown):
        seconds = np.array([each.get(part, 0) for each in spent])
        axes.barh(
            range(len(rows)), seconds, left=start, height=0.7, label=part,
            color=COLORS[index % len(COLORS)], hatch="///" * (index // len(COLORS)),
        )  # fmt: skip
        start += seconds
    name_runs(axes, rows)
    axes.set(xlabel="seconds")
    plain_ticks(axes.xaxis)
    axes.legend(frameon=False, ncols=5, fontsize=8, loc="lower left",
                bbox_to_anchor=(0, 1))  # fmt: skip
    tell_left_out(figure, every, rows)
    return png(figure)


FIGURES: dict[str, tuple[str, Callable[[list[Row]], bytes | None]]] = {
    "losses": ("Loss against tokens, and against seconds", losses),
    "scaling": ("Speed, speed-up and efficiency", scaling),
    "batch_sizes": ("Loss at the end against the batch size", batch_sizes),
    "noise": ("The gradient noise scale", noise),
    "costs": ("Bytes and memory", costs),
    "parts": ("Where the time went", parts),
}
