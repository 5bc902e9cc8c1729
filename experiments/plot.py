"""Draw the loss curve of a run.

python -m experiments.plot --workdir=runs/tiny --out=loss.png

Writes a picture of the training and validation losses against tokens, with the loss of a
bigram model.
"""

import pathlib

from absl import flags

from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.run.log import read_metrics
from experiments.run.summary import read_summary
from experiments.sweeps.looks import COLORS, plain_ticks, pyplot

WORKDIR = startup.define_workdir()
OUT = flags.DEFINE_string(
    "out", "loss.png", "Picture to write; its ending chooses the format."
)


def main() -> None:
    with user_errors():
        workdir = startup.workdir(WORKDIR)
        records = read_metrics(workdir / "metrics.jsonl")
        if not records:
            raise ValueError(f"{workdir} holds no metrics.jsonl with a whole line")
        summary, out = read_summary(workdir), picture(OUT.value)
    draw(records, summary, out)


def picture(name: str) -> pathlib.Path:
    """Return the file to write; ValueError if no picture can be written there."""
    out = pathlib.Path(name)
    kinds = pyplot.figure().canvas.get_supported_filetypes()
    if out.suffix[1:] not in kinds:
        raise ValueError(f"--out={name}: end it in one of .{', .'.join(sorted(kinds))}")
    if not out.parent.is_dir():
        raise ValueError(f"--out={name}: there is no folder {out.parent}")
    return out


def draw(records: list[dict], summary: dict | None, out: pathlib.Path) -> None:
    train = [r for r in records if r["split"] == "train"]
    evals = [r for r in records if r["split"] == "eval"]
    # The last evaluation may have more rows than the others, so it is drawn apart.
    alike = [r for r in evals if r["tokens"] == evals[0]["tokens"]]
    tokens = {r["step"]: r["tokens"] for r in train}
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for points, label, how in [
        (train, "train", {"color": COLORS[0], "lw": 0.8}),
        (alike, "validation", {"color": COLORS[1], "marker": "o"}),
        (
            [r for r in evals if r not in alike],
            "validation, all rows",
            {"color": COLORS[1], "marker": "D", "mfc": "none", "ls": "none"},
        ),
    ]:
        if points:
            at = [tokens[r["step"]] for r in points]
            axes.plot(at, [r["loss"] for r in points], label=label, **how)
    if summary:
        bigram = {"color": "#555555", "ls": "--", "lw": 1}
        axes.axhline(summary["bigram_loss"], label="validation, bigram", **bigram)
    axes.set(xlabel="tokens", ylabel="loss (nats a token)")
    plain_ticks(axes.xaxis, axes.yaxis)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    startup.run(main)
