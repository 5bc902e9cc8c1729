"""Make docs/strategies.md and its picture of what experiments.studies.strategies measured.

python -m experiments.studies.strategies_page [--results=results/strategies.jsonl]
    [--out=docs/strategies.md]
"""

import pathlib
import statistics
from typing import NamedTuple

import matplotlib
from absl import flags

from configs.sweeps.strategies import BASE, COMPRESSED, LOCAL, SYNCHRONOUS
from experiments.processes.messages import size, user_errors
from experiments.run import startup
from experiments.sweeps.link_tables import slow_link_table, wire_table
from experiments.sweeps.results import Line, read

RESULTS = flags.DEFINE_string("results", "results/strategies.jsonl", "What to read.")
OUT = flags.DEFINE_string("out", "docs/strategies.md", "The page to write.")
TARGET = 1000  # times fewer bytes than float32 all-reduce ...
WITHIN = 0.005  # ... at a validation loss this much higher at most

HEAD = """# What each strategy sends, and what it learns

Made by `python -m experiments.studies.strategies_page` of `results/strategies.jsonl`, which
these commands measure, on {devices} emulated devices:

```sh
run="python -m experiments.studies.strategies --config=configs/tiny.py --devices=8"
$run --config.steps=200                # all but diloco
$run --config.steps=1000 --seeds=1 --only=shard_map
$run --config.steps=1000 --seeds=1 --only=diloco-50,diloco-100,... \\
    --config.optim.learning_rate=1e-3   # and --config.steps=200 --seeds=3 --only=diloco-50
$run --measure=program
$run --measure=time
```

A replica of DiLoCo sees an eighth of the batch, so its learning rate is divided by the root
of 8 (Malladi et al. 2022). At the full rate of 3e-3 `diloco-50` has 3.803 after 1000 steps.
At 1e-3 plain averaging every 50 steps (no outer momentum) has 3.490, DiLoCo 3.494, so it is
not the outer optimizer that loses; the replicas begin from nothing, with 4 rows a step.
*Loss*: validation, nats a token, mean over seeds and, where there are several, half the
distance between the highest and the lowest; *against float32*: over the seeds of both.
*Sent*: bytes that one device puts on the wire in a step on average, read from the compiled
program (what meets once in H steps counts 1/H; warm-up stages do not count). *Fewer*: times
fewer than float32 all-reduce. *State*: what a device keeps from step to step, parameters
and optimizer state included; *temporary*: the compiled step's own buffers. *Step*: time of
a step on devices that share two cores, over that of float32 all-reduce, in turns; emulated
devices have no wire, so it is the cost of encoding and of bookkeeping alone.
"""


WIRE = """## The ledger and the wire

`python -m experiments.studies.wire`: processes in network namespaces train
`configs/tiny.py`; bytes that a process sends in a step, by the ledger of its compiled
program and by the counters of its interface. *Without both*: less the 66 bytes of headers
of each packet (acknowledgements are packets; one that carries data has up to 64 kB there),
and less the segments of 1448 bytes that TCP sent again, as it does when the other process
is late to read. With 4 processes Gloo's reduce-scatter (recursive halving) ends with its
parts in bit-reversed order, and two processes send theirs once more: a sixth above the
(N-1)/N of the ledger, or a twelfth of a reduce-scatter and an all-gather together (zero1,
fsdp)."""

SLOW_LINK = """## On a slow link

`python -m experiments.studies.slow_link`: two processes, a core each, joined by links whose
rate `tc tbf` limits; seconds of a step there times the steps to the loss on two devices
(`experiments.studies.strategies --devices=2`, one seed)."""

PIPELINE = """## Pipelines

`python -m experiments.studies.pipeline_bubble --devices=4 --time`: the share of the time in
which a stage waits. *Slots*: of the schedule, forward and backward as long as each other.
*In step*: a backward takes 3 forwards (it computes the forward again) and each tick waits
for its slowest stage, as the compiled program does. *Free*: without that wait. *Theory*:
(p-1)/(m+p-1), interleaved (p-1)/(v m+p-1). *Grown inputs*: by how many stashed inputs the
compiled program's temporaries grow from the fewest microbatches on."""


class Row(NamedTuple):
    member: str
    losses: dict[int, float]  # of the seeds
    sent: float | None
    state: float | None
    temporary: float | None
    ratio: float | None  # of a step's time to the base's

    @property
    def loss(self) -> float:
        return statistics.fmean(self.losses.values())

    @property
    def spread(self) -> float:
        return (max(self.losses.values()) - min(self.losses.values())) / 2

    def excess(self, base: "Row") -> float:
        """Return the relative difference to the base's loss, over the seeds of both."""
        both = self.losses.keys() & base.losses.keys()
        return sum(self.losses[s] for s in both) / sum(base.losses[s] for s in both) - 1


def rows(lines: list[Line], steps: int, members) -> list[Row]:
    """Join the lines of each member that was trained for this many steps."""

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
        if losses:
            costs = [
                last("program", member, field)
                for field in ("sent_bytes", "state_bytes", "temporary_bytes")
            ]
            result.append(Row(member, losses, *costs, last("time", member, "ratio")))
    return result


def cell(num_bytes: float | None) -> str:
    return "" if num_bytes is None else size(num_bytes)


def table(shown: list[Row], base: Row) -> str:
    out = [
        "| | seeds | loss | against float32 | sent | fewer | state | temporary | step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in shown:
        fewer = f"{base.sent / row.sent:.4g}" if row.sent and base.sent else ""
        cells = [
            row.member,
            f"{len(row.losses)}",
            f"{row.loss:.4f}" + (f" ± {row.spread:.4f}" if len(row.losses) > 1 else ""),
            f"{row.excess(base):+.2%}",
            cell(row.sent),
            fewer,
            cell(row.state),
            cell(row.temporary),
            f"{row.ratio:.2f}" if row.ratio else "",
        ]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out)


def verdict(shown: list[Row], base: Row) -> str:
    """Say how near the aim of 1,000 times fewer bytes within 0.5 % comes."""
    known = [row for row in shown if row.sent and row.member != BASE]
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
        points = [row for row in shown if row.member in members and row.sent]
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


def sections(lines: list[Line], out: pathlib.Path) -> list[str]:
    found = [HEAD.format(devices=max(x.get("devices", 0) for x in lines)).strip()]
    for steps in sorted({x["steps"] for x in lines if x["measure"] == "loss"}):
        shown = rows(lines, steps, SYNCHRONOUS | COMPRESSED | LOCAL)
        (base,) = [row for row in shown if row.member == BASE] or [None]
        if base is None or base.sent is None:
            continue
        picture = out.with_name(f"{out.stem}-{steps}.png")
        draw(shown, base, picture)
        found += [f"## After {steps} steps", verdict(shown, base)]
        found.append(f"![Loss against bytes]({picture.name})")
        for title, members in [
            ("Exact", SYNCHRONOUS),
            ("Compressed or delayed", COMPRESSED),
            ("Meeting rarely", LOCAL),
        ]:
            part = [row for row in shown if row.member in members]
            if part:
                found.append(f"### {title}\n\n{table(part, base)}")
    return found


def further_sections(folder: pathlib.Path) -> list[str]:
    """Tables of the other results in the folder."""
    found = []
    if wire := read(folder / "wire.jsonl"):
        found += [WIRE, wire_table(wire)]
    slow, curves = (read(folder / f"{x}.jsonl") for x in ("slow_link", "two_devices"))
    if slow and curves:
        found += [SLOW_LINK, slow_link_table(slow, curves)]
    if pipeline := read(folder / "pipeline.jsonl"):
        found += [PIPELINE]
        for timed in (False, True):
            if records := [x for x in pipeline if ("seconds" in x) == timed]:
                found.append(plain_table(records))
    return found


def plain_table(records: list[Line]) -> str:
    names = list(records[0])
    out = [f"| {' | '.join(names).replace('_', ' ')} |", f"|{'---|' * len(names)}"]
    for record in records:
        cells = [record.get(name, "") for name in names]
        cells = [f"{x:.3g}" if isinstance(x, float) else str(x) for x in cells]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out)


def main() -> None:
    with user_errors():
        file = pathlib.Path(RESULTS.value)
        lines = read(file)
        if not lines:
            raise ValueError(
                f"{file} holds no results; python -m experiments.studies.strategies first"
            )
        out = pathlib.Path(OUT.value)
        out.parent.mkdir(exist_ok=True)
    page = sections(lines, out) + further_sections(file.parent)
    out.write_text("\n\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    startup.run(main)
