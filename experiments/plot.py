"""Draw the loss curve of a run.

python -m experiments.plot --workdir=runs/tiny --out=loss.png
"""

import pathlib

import matplotlib
from absl import flags

from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.run.log import read_metrics
from experiments.run.summary import read_summary

WORKDIR = startup.define_workdir()
OUT = flags.DEFINE_string("out", "loss.png", "The picture to write.")

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"  # Okabe and Ito: safe for all eyes


def main() -> None:
    with user_errors():
        workdir = startup.workdir(WORKDIR)
        records = read_metrics(workdir / "metrics.jsonl")
        if not records:
            raise ValueError(f"{workdir} holds no metrics.jsonl with a whole line")
        summary = read_summary(workdir)
    draw(records, summary, pathlib.Path(OUT.value))


def draw(records: list[dict], summary: dict | None, out: pathlib.Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot  # after the choice of the backend

    train = [r for r in records if r["split"] == "train"]
    evals = [r for r in records if r["split"] == "eval"]
    tokens = {r["step"]: r["tokens"] / 1e6 for r in train}
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(
        tokens.values(), [r["loss"] for r in train], color=BLUE, lw=0.8, label="train"
    )
    axes.plot(
        [tokens[r["step"]] for r in evals],
        [r["loss"] for r in evals],
        color=ORANGE, marker="o", label="validation",
    )  # fmt: skip
    if summary:
        axes.axhline(
            summary["bigram_loss"], color=GREY, ls="--", lw=1, label="validation, bigram"
        )
    axes.set_xlabel("tokens (millions)")
    axes.set_ylabel("loss (nats a token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    startup.run(main)
