"""The runs of a sweep as rows, and the baseline of each."""

import json
import math
import pathlib
import statistics
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

from configs import fields
from configs.base import FAMILIES, Experiment
from experiments.run.log import read_metrics
from experiments.run.summary import read_summary
from experiments.run.workdir import read_config, read_description

# Fields that change with the batch size, at equal tokens or in weak scaling.
WITH_BATCH = (
    "data.batch_size",
    "data.growth",
    "steps",
    "optim.learning_rate",
    "optim.warmup_steps",
)

# Fields of all families that do not change the numbers of a run.
FREE = {
    name
    for cls in FAMILIES.values()
    for name in fields.flatten(Experiment(model=cls())).keys()
    - fields.deciding(Experiment(model=cls()))
}


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
        """Validation loss; infinite if it is not a finite number."""
        loss = self.summary["val_loss"]
        return loss if loss is not None and math.isfinite(loss) else math.inf

    @property
    def half_interval(self) -> float | None:
        """Half the width of the loss's interval over documents.

        None if there is none, or if the loss is not finite.
        """
        interval = self.summary.get("loss_interval")
        if not interval or None in interval:
            return None
        return (interval[1] - interval[0]) / 2

    @property
    def batch_tokens(self) -> int:
        return self.config["data.batch_size"] * self.config["data.seq_len"]

    @property
    def grows(self) -> bool:
        """Whether its batch grows; `batch_tokens` is then that of its first step."""
        return bool(self.config.get("data.growth"))

    @property
    def train_loss(self) -> float | None:
        """Mean over the last tenth of the steps; None for a model of counts."""
        losses = [r["loss"] for r in self.of("train") if r["loss"] is not None]
        return statistics.fmean(losses[-max(len(losses) // 10, 1) :]) if losses else None

    @property
    def gap(self) -> float | None:
        """Validation loss over training loss, nats; None if one of them is not a number."""
        if self.train_loss is None or not math.isfinite(self.loss):
            return None
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

        Infinite losses are left out. So is the last evaluation if it has more rows than
        the others.
        """
        tokens = {r["step"]: r["tokens"] for r in self.of("train")}
        evals = [r for r in self.of("eval") if r["loss"] is not None]
        return [
            (r["step"], tokens[r["step"]], r["loss"])
            for r in evals
            if r["tokens"] == evals[0]["tokens"]
        ]

    def settings(self, without: tuple[str, ...] = ()) -> tuple:
        """Return the fields that decide the numbers of the run, except `without`."""
        return tuple(
            (key, repr(value))
            for key, value in sorted(self.config.items())
            if key not in FREE and not key.startswith("parallel.") and key not in without
        )


def read_row(name: str, workdir: pathlib.Path) -> Row | None:
    """Return a run; None if it is not complete."""
    summary = read_summary(workdir)
    if not summary:
        return None
    description = read_description(workdir)
    config = fields.flatten(read_config(workdir))
    config |= {name: description[name] for name in ("family", "fingerprint")}
    return Row(name, config, summary, read_metrics(workdir / "metrics.jsonl"))


def read_rows(folder: pathlib.Path) -> tuple[list[Row], dict[str, str]]:
    """Return the complete runs of a sweep in its order, and why others are not complete.

    ValueError if the folder holds no sweep.
    """
    file = folder / "sweep.json"
    if not file.exists():
        raise ValueError(
            f"{folder} holds no sweep.json; python -m experiments.sweep makes one"
        )
    rows, missing = [], {}
    for name in json.loads(file.read_text(encoding="utf-8")):
        if row := read_row(name, folder / name):
            rows.append(row)
        else:
            error = folder / f"{name}.error"
            there = error.exists()
            missing[name] = (
                error.read_text(encoding="utf-8").strip() if there else "not run yet"
            )
    return rows, missing


def read_paths(paths: list[pathlib.Path]) -> list[Row]:
    """Return the complete runs of sweeps and of workdirs, named by their paths.

    ValueError for a path that holds no complete run.
    """
    rows = []
    for path in paths:
        if (path / "sweep.json").exists():
            found, missing = read_rows(path)
            if not found:
                raise ValueError(f"{path} has no complete run yet: {missing}")
            prefix = f"{path}/" if len(paths) > 1 else ""
            rows += [row._replace(name=prefix + row.name) for row in found]
        elif row := read_row(str(path), path):
            rows.append(row)
        else:
            raise ValueError(
                f"{path} holds neither a sweep.json nor a summary.json: give the folder of "
                "a sweep, or the workdir of a run that is complete"
            )
    return rows


def baselines(rows: list[Row]) -> dict[str, Row]:
    """Map each run's name to its baseline, the same run on the fewest devices.

    If no such run has fewer devices, runs with another batch size count too (weak scaling).
    If there is still none, the baseline is the sweep's first run on as many devices, which
    may be the run itself.
    """
    same = group(rows, Row.settings)
    but_for_batch = group(rows, lambda row: row.settings(WITH_BATCH))
    found = {}
    for row in rows:
        alike = same[row.settings()]
        candidates = [
            min(others, key=lambda r: r.devices)
            for others in (alike, but_for_batch[row.settings(WITH_BATCH)])
        ]
        fewer = [r for r in candidates if r.devices < row.devices]
        found[row.name] = fewer[0] if fewer else alike[0]
    return found


def group(rows: list[Row], key: Callable[[Row], Hashable]) -> dict[Hashable, list[Row]]:
    """Return key -> its rows, both in the order of the sweep."""
    found: dict[Hashable, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def label(row: Row, without: tuple[str, ...]) -> str:
    """Name the fields that the sweep set for a row, except `without`."""
    parts = [p for p in row.name.split(",") if p.split("=")[0] not in without]
    return ", ".join(parts)


def by_label(rows: list[Row]) -> dict[str, list[Row]]:
    """Group the rows that differ in their devices and seed alone, and name the groups."""
    groups = group(rows, lambda row: label(row, ("devices", "processes", "seed")))
    for alike in groups.values():
        if len({(row.devices, row.config["seed"]) for row in alike}) < len(alike):
            # Runs differ in the number of processes for the same devices.
            groups = group(rows, lambda row: label(row, ("devices", "seed")))
            break
    unnamed = "all runs" if len(groups) == 1 else "nothing set"
    return {name or unnamed: alike for name, alike in groups.items()}


def reached(points: Iterable[tuple[float, float]], target: float) -> float | None:
    """Return the x at which a curve of (x, loss) first comes down to a loss (linear).

    None if it never does, or if the first point is already below the loss.
    """
    before = None
    for x, loss in points:
        if loss <= target:
            if before is None:
                return None
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (x - before[0])
        before = (x, loss)
    return None
