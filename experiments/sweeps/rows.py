"""The runs of a sweep as rows, and what each is to be compared with."""

import json
import pathlib
import statistics
from typing import Any, NamedTuple

from experiments.run.log import read_metrics
from experiments.run.summary import read_summary
from experiments.run.workdir import MAY_DIFFER, flatten

# Fields that a larger batch brings along, at equal tokens or in weak scaling.
WITH_BATCH = ("data.batch_size", "steps", "optim.learning_rate", "optim.warmup_steps")


class Row(NamedTuple):
    """A complete run."""

    name: str
    config: dict[str, Any]  # dotted field -> value
    summary: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def devices(self) -> int:
        return self.summary["devices"]

    @property
    def emulated(self) -> bool:
        return self.summary["emulated"]

    @property
    def rate(self) -> float:
        """Tokens a second, the median over steps."""
        return self.summary["tokens_per_second"]

    @property
    def loss(self) -> float:
        return self.summary["val_loss"]

    @property
    def batch_tokens(self) -> int:
        return self.config["data.batch_size"] * self.config["data.seq_len"]

    @property
    def train_loss(self) -> float:
        """Of the last tenth of the steps."""
        losses = [r["loss"] for r in self.of("train") if r["loss"] is not None]
        return statistics.fmean(losses[-max(len(losses) // 10, 1) :])

    @property
    def gap(self) -> float:
        """Validation loss over training loss, nats."""
        return self.loss - self.train_loss

    def of(self, split: str) -> list[dict[str, Any]]:
        return [r for r in self.records if r["split"] == split]

    def seconds_at(self) -> dict[int, float]:
        """Return step -> seconds spent in steps until then."""
        total, found = 0.0, {}
        for record in self.of("train"):
            total += record["step_seconds"]
            found[record["step"]] = total
        return found

    def curve(self) -> list[tuple[int, int, float]]:
        """Return (step, tokens, validation loss) on the way.

        Without losses that are infinite, and without the last evaluation where that is of
        more rows than those before it.
        """
        tokens = {r["step"]: r["tokens"] for r in self.of("train")}
        evals = [r for r in self.of("eval") if r["loss"] is not None]
        return [
            (r["step"], tokens[r["step"]], r["loss"])
            for r in evals
            if r["tokens"] == evals[0]["tokens"]
        ]

    def settings(self, without: tuple[str, ...] = ()) -> tuple:
        """Return all that decides the numbers, but for `without`."""
        return tuple(
            (key, value)
            for key, value in sorted(self.config.items())
            if not key.startswith(MAY_DIFFER) and key not in without
        )


def read_rows(folder: pathlib.Path) -> tuple[list[Row], dict[str, str]]:
    """Return the complete runs of a sweep in its order, and what ended the others.

    ValueError if the folder holds no sweep.
    """
    file = folder / "sweep.json"
    if not file.exists():
        raise ValueError(
            f"{folder} holds no sweep.json; python -m experiments.sweep makes one"
        )
    rows, missing = [], {}
    for name in json.loads(file.read_text(encoding="utf-8")):
        if summary := read_summary(folder / name):
            config = (folder / name / "config.json").read_text(encoding="utf-8")
            records = read_metrics(folder / name / "metrics.jsonl")
            rows.append(Row(name, flatten(json.loads(config)), summary, records))
        else:
            error = folder / f"{name}.error"
            why = error.read_text(encoding="utf-8") if error.exists() else "not run yet"
            missing[name] = why.strip()
    return rows, missing


def baseline(row: Row, rows: list[Row]) -> Row:
    """Return the run on fewest devices that is else the same; at worst the row itself.

    Where every such run has as many devices, runs with another batch size count too (weak
    scaling), and then the first of the sweep on as many devices (strategies).
    """
    for without in ((), WITH_BATCH):
        alike = [r for r in rows if r.settings(without) == row.settings(without)]
        fewest = min(alike, key=lambda r: r.devices)
        if fewest.devices < row.devices:
            return fewest
    alike = [r for r in rows if r.settings() == row.settings()]
    return alike[0]


def label(row: Row) -> str:
    """Name a row's settings without its degree: runs that only differ there share it."""
    parts = row.name.split(",")
    kept = [p for p in parts if p.split("=")[0] not in ("devices", "processes", "seed")]
    return ", ".join(kept) or "base"


def by_label(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(label(row), []).append(row)
    return found
