"""The look of a report's pictures: colours, dashes, ticks and legends.

The colours are those of Okabe and Ito, which colour-blind people can distinguish; each has
its own marker.
"""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np

from experiments.processes.messages import human
from experiments.sweeps.rows import Row, by_label
from experiments.sweeps.verdicts import devices

matplotlib.use("Agg")
from matplotlib import pyplot, ticker  # noqa: E402  after the choice of the backend
from matplotlib.lines import Line2D  # noqa: E402

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
WIDTH = 9.0  # inches


def style(index: int) -> dict[str, str]:
    """Return a colour and a marker; pairs repeat after 7 x 8, which have no divisor."""
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def png(figure) -> bytes:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()


class PlainTicks(ticker.Formatter):
    """Labels such as 250, 1.5 k or 20 M, with enough digits to be distinct."""

    def __call__(self, value: float, pos: int | None = None) -> str:
        return self.format_ticks([value])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        largest = max(map(abs, values), default=0)
        power = min(int(np.log10(largest)) // 3, 4) if largest >= 1000 else 0
        for digits in range(3, 10):
            scaled = [f"{value / 1000**power:.{digits}g}" for value in values]
            if len(set(scaled)) == len(set(values)):
                break
        unit = ("", " k", " M", " G", " T")[power]
        return [text if text == "0" else text + unit for text in scaled]


def plain_ticks(*axes) -> None:
    for each in axes:
        each.set_major_formatter(PlainTicks())


def log_ticks(axis, values: Sequence[float]) -> None:
    """Make an axis logarithmic, with at least two plain ticks."""
    low, high = min(values), max(values)
    middle = (low * high) ** 0.5
    room = max(1.15 * (high / low) ** 0.5, 2.5)
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.axes.set(**{f"{axis.axis_name}lim": (middle / room, middle * room)})
    # At most about ten labels, however many decades there are.
    subs = (1, 2, 5) if room**2 < 1e3 else (1,)
    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_minor_formatter(ticker.NullFormatter())
    axis.set_major_formatter(lambda value, _: human(value))


def legend(figure, handles: list[Line2D]) -> None:
    """Put the legend under the axes, where it covers no curve."""
    longest = max((len(handle.get_label()) for handle in handles), default=0)
    figure.legend(
        handles=handles, loc="outside lower left", frameon=False, fontsize=8,
        ncols=1 if longest > 45 else 3, handlelength=3.5,
    )  # fmt: skip


DASHES = (
    "-", (0, (6, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1)),
    (0, (6, 2, 1, 2, 1, 2)), (0, (1, 4)), (0, (12, 3)),
)  # fmt: skip


def looks(rows: list[Row], shown: list[Row]) -> tuple[list[dict], list[Line2D]]:
    """Return how to draw the lines of the `shown` runs of a sweep, and a legend.

    Three properties may differ between runs: the fields that the sweep set, the devices,
    the seed. The first that differs sets the colour and the marker, the second the dash. A
    run looks the same in every picture. Each line is thinner than the one before, so that
    equal curves stay visible.
    """
    labels = {row.name: name for name, alike in by_label(rows).items() for row in alike}
    kinds = [
        {row.name: labels[row.name] for row in rows},
        {row.name: devices(row.devices) for row in rows},
        {row.name: f"seed {row.config['seed']}" for row in rows},
    ]
    first, second, _ = sorted(kinds, key=lambda kind: len(set(kind.values())) == 1)
    colors, dashes = ordered(first), ordered(second)
    thin = dashes if len(dashes) > 1 else colors
    widths = {value: width(i, len(thin)) for i, value in enumerate(thin)}
    color = {value: style(i) for i, value in enumerate(colors)}
    dash = {value: {"ls": DASHES[i % len(DASHES)]} for i, value in enumerate(dashes)}

    def how(one: str, other: str) -> dict:
        thickness = widths[other if thin is dashes else one]
        return color[one] | dash[other] | {"lw": thickness, "ms": 2 + thickness}

    there = {row.name for row in shown}
    handles = [
        Line2D([], [], label=value, ms=5, **color[value])
        for value in ordered({name: first[name] for name in first if name in there})
    ]
    if len(dashes) > 1:
        handles += [
            Line2D([], [], label=value, color="#555555", lw=widths[value], **dash[value])
            for value in ordered({name: second[name] for name in second if name in there})
        ]
    return [how(first[row.name], second[row.name]) for row in shown], handles


def ordered(values: dict[str, str]) -> list[str]:
    return list(dict.fromkeys(values.values()))


def width(index: int, number: int) -> float:
    """Return points: the first of a few lines is wide, the last one is thin."""
    return 1 + (number - 1 - index) if number <= 5 else 1.2
