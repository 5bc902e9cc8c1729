"""The tables and pictures of docs/strategies.md, from experiments.studies.strategies.

Everything here is computed from the lines of results/strategies.jsonl.
"""

import pathlib
import statistics
from typing import NamedTuple

import matplotlib

from configs.sweeps.strategies import BASE, COMPRESSED, LOCAL, SYNCHRONOUS
from experiments.processes.messages import size
from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown, over_seeds

TARGET = 1000  # times fewer bytes than float32 all-reduce ...
WITHIN = 0.005  # ... at a validation loss this much higher at most
GROUPS = {"exact": SYNCHRONOUS, "compressed": COMPRESSED, "local": LOCAL}


class Row(NamedTuple):
    member: str
    losses: dict[int, float]  # seed -> validation loss
    sent: float | None
    state: float | None
    temporary: float | None
    ratio: float | None  # a step's time / that of the base

    @property
    def loss(self) -> float:
        return statistics.fmean(self.losses.values())

    def excess(self, base: "Row") -> float:
        """Return the relative difference to the base's loss, over the seeds of both."""
        both = self.losses.keys() & base.losses.keys()
        return sum(self.losses[s] for s in both) / sum(base.losses[s] for s in both) - 1


def rows(lines: list[Line], steps: int, members) -> list[Row]:
    """Join the lines of each member; its losses are those after this many steps."""

    def last(measure: str, member: str, field: str) -> float | None:
        found = [
            x[field] for x in lines if x["measure"] == measure and x["member"] == member
        ]
        return found[-1] if found else None

    result = []
    for member in members:
        losses = {
            x["seed"]: x["loss"]
            for x in lines
            if (x["measure"], x["member"], x.get("steps")) == ("loss", member, steps)
        }
        costs = [
            last("program", member, field)
            for field in ("sent_bytes", "state_bytes", "temporary_bytes")
        ]
        row = Row(member, losses, *costs, last("time", member, "ratio"))
        if any(row[1:]):
            result.append(row)
    return result


def cell(num_bytes: float | None) -> str:
    return "" if num_bytes is None else size(num_bytes)


def loss_cells(row: Row, base: Row) -> list[str]:
    if not row.losses:
        return ["", "", ""]
    loss = over_seeds(list(row.losses.values()))
    return [f"{len(row.losses)}", loss, f"{row.excess(base):+.2%}"]


def table(shown: list[Row], base: Row) -> str:
    head = ["", "seeds", "loss", "against float32", "sent"]
    head += ["fewer", "state", "temporary", "step"]
    body = []
    for row in shown:
        fewer = f"{base.sent / row.sent:.4g}" if row.sent and base.sent else ""
        cells = [
            row.member,
            *loss_cells(row, base),
            cell(row.sent),
            fewer,
            cell(row.state),
            cell(row.temporary),
            f"{row.ratio:.2f}" if row.ratio else "",
        ]
        body.append(cells)
    return markdown(head, body)


def verdict(shown: list[Row], base: Row) -> str:
    """Say how close the members come to 1,000 times fewer bytes within 0.5 %."""
    known = [row for row in shown if row.sent and row.losses and row.member != BASE]
    near = [row for row in known if row.excess(base) <= WITHIN]
    small = [row for row in known if base.sent / row.sent >= TARGET]
    said = []
    if near:
        best = min(near, key=lambda row: row.sent)
        said.append(
            f"Within {WITHIN:.1%} of float32's loss, `{best.member}` sends the least: "
            f"{base.sent / best.sent:.4g} times fewer bytes, at "
            f"{best.excess(base):+.2%}."
        )
    if small:
        best = min(small, key=lambda row: row.excess(base))
        said.append(
            f"With {TARGET} times fewer bytes or better, `{best.member}` learns the most: "
            f"{best.excess(base):+.2%} at {base.sent / best.sent:.4g} times fewer."
        )
    return " ".join(said) or f"Nothing is within {WITHIN:.1%} of float32's loss yet."


def draw(shown: list[Row], base: Row, out: pathlib.Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot  # after the choice of the backend

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for members, color, marker, label in [
        (COMPRESSED, "#0072B2", "o", "compressed or delayed"),
        (LOCAL, "#D55E00", "s", "meets rarely"),
    ]:
        points = [r for r in shown if r.member in members and r.sent and r.losses]
        if not points:
            continue
        axes.plot(
            [base.sent / row.sent for row in points],
            [100 * row.excess(base) for row in points],
            marker, color=color, label=label,
        )  # fmt: skip
        for row in points:
            axes.annotate(
                row.member,
                (base.sent / row.sent, 100 * row.excess(base)),
                xytext=(4, 3), textcoords="offset points", fontsize=7,
            )  # fmt: skip
    axes.axhline(100 * WITHIN, color="#555555", ls="--", lw=1, label="0.5 % above float32")
    axes.axvline(TARGET, color="#555555", ls=":", lw=1, label="1,000 times fewer bytes")
    axes.set_xscale("log")
    axes.set_xlabel("times fewer bytes than float32 all-reduce")
    axes.set_ylabel("validation loss above float32's (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=150)
    pyplot.close(figure)


def table_names(steps: int, members: list[str]) -> set[str]:
    """Name the tables that show runs of these members with this many steps."""
    groups = [name for name, group in GROUPS.items() if group.keys() & set(members)]
    return {f"{name}-{steps}" for name in ("verdict", *groups)}


def by_steps(lines: list[Line]) -> dict[int, tuple[list[Row], Row]]:
    """Map numbers of steps to the members' rows and the base's, where the base has one."""
    found = {}
    for steps in sorted({x["steps"] for x in lines if x["measure"] == "loss"}):
        shown = rows(lines, steps, SYNCHRONOUS | COMPRESSED | LOCAL)
        base = next((row for row in shown if row.member == BASE), None)
        if base is not None and base.losses and base.sent is not None:
            found[steps] = shown, base
    return found


def strategy_tables(lines: list[Line]) -> dict[str, str]:
    """Return the tables by name; `verdict-STEPS` is a sentence."""
    found = {}
    for steps, (shown, base) in by_steps(lines).items():
        found[f"verdict-{steps}"] = verdict(shown, base)
        for name, members in GROUPS.items():
            if part := [row for row in shown if row.member in members]:
                found[f"{name}-{steps}"] = table(part, base)
    return found


def draw_all(lines: list[Line], page: pathlib.Path) -> None:
    """Draw one picture for each number of steps beside the page."""
    for steps, (shown, base) in by_steps(lines).items():
        draw(shown, base, page.with_name(f"{page.stem}-{steps}.png"))
