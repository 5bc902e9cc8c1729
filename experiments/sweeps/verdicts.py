"""Did parallelism pay? Four verdicts for each run of a sweep.

They judge time, quality, utilisation and generalisation. Utilisation is a share of the
machine's limit. The others compare a run with its baseline: the run on the fewest devices
with the same settings otherwise.
"""

import math
import statistics
from typing import NamedTuple

import numpy as np

from experiments.processes.messages import human
from experiments.sweeps.rows import Row, by_label
from experiments.sweeps.tables import digits

SAME = 0.005  # relative; losses nearer than this tie
FASTER = 1.05  # a smaller speed-up is within the noise of a shared machine
TIMES = 2  # a loss so many times another is told as a multiple
USEFUL = 0.5  # parallel efficiency below which half of each device is wasted


class Verdict(NamedTuple):
    time: str
    quality: str
    utilisation: str
    generalisation: str


def verdict(row: Row, rows: list[Row], base: Row, limit: float | None) -> Verdict:
    """Judge a run; `limit` is the FLOP/s of one device (of a CPU: of all its cores)."""
    return Verdict(
        time_verdict(row, base),
        quality_verdict(row, rows, base),
        utilisation_verdict(row, limit),
        generalisation_verdict(row, base),
    )


def devices(number: int) -> str:
    return f"{number} device{'s' if number > 1 else ''}"


def speed_up(row: Row, base: Row) -> float:
    return row.rate / base.rate


def efficiency(row: Row, base: Row) -> float:
    return speed_up(row, base) * base.devices / row.devices


def time_verdict(row: Row, base: Row) -> str:
    if not math.isfinite(row.rate / base.rate):
        return "Not measured: the records of the steps were lost."
    rate = f"{human(row.rate)} tokens/s"
    if row is base:
        return f"{rate}."
    rates = f"{rate} against {human(base.rate)} on {devices(base.devices)}"
    if row.emulated:
        return (
            f"Not answered: {row.devices} emulated devices share the machine's cores "
            f"({rates})."
        )
    gain = f"{speed_up(row, base):.2f} times as fast"
    if row.devices == base.devices:
        return f"{gain}: {rates}."
    word = "Yes" if speed_up(row, base) >= FASTER else "No"
    return (
        f"{word}: {gain} on {row.devices / base.devices:g} times the devices "
        f"({efficiency(row, base):.0%} efficient): {rates}."
    )


def compare(value: float, reference: float) -> str:
    """Say whether a loss is better or worse than a reference, or ties with it."""
    if not math.isfinite(value + reference):
        return {True: "same", False: "worse"}[value == reference]
    change = value / reference - 1
    if abs(change) <= SAME:
        return "same"
    return "better" if change < 0 else "worse"


def tied(row: Row, rows: list[Row]) -> list[Row]:
    """Return the other rows whose loss ties with a row's."""
    return [r for r in rows if r is not row and compare(r.loss, row.loss) == "same"]


def quality_verdict(row: Row, rows: list[Row], base: Row) -> str:
    # A run with another seed is not a rival: nobody chooses a seed. Nor is one on other
    # prepared text: its losses mean something else.
    rivals = [
        r
        for r in rows
        if r.devices == base.devices
        and r.config["seed"] == row.config["seed"]
        and r.config.get("fingerprint") == row.config.get("fingerprint")
    ]
    best = min(rivals, key=lambda r: r.loss)
    if row is best:
        ties = tied(row, rivals)
        word = f"Tied with {len(ties)} more for the" if ties else "The"
        return f"{word} lowest loss on {devices(row.devices)}: {digits(row.loss)}."
    whose = "the baseline" if best is base else best.name
    loss, there = f"loss {digits(row.loss)}", f"{digits(best.loss)} of {whose}"
    kind = compare(row.loss, best.loss)
    if kind == "same":
        return f"A tie: {loss} and {there}, the lowest on {devices(best.devices)}."
    change = abs(row.loss / best.loss - 1)
    if not math.isfinite(change):
        return f"{kind.capitalize()}: {loss} against {there}."
    if change >= TIMES - 1:
        return f"{kind.capitalize()}: {loss}, {digits(1 + change)} times the {there}."
    side = "below" if kind == "better" else "above"
    return f"{kind.capitalize()}: {loss}, {change:.1%} {side} the {there}."


def flops_per_second(row: Row) -> float:
    return row.rate * row.summary["model_flops_per_token"]


def utilisation(row: Row, limit: float | None) -> float | None:
    """Return the achieved share of the limit; a CPU's devices share one limit."""
    if not limit:
        return None
    on_cpu = row.summary["device_kind"] == "cpu"
    return flops_per_second(row) / (limit if on_cpu else limit * row.devices)


def utilisation_verdict(row: Row, limit: float | None) -> str:
    share, busy = utilisation(row, limit), row.summary["core_share"]
    cores = f"CPU cores {busy:.0%} busy during steps"
    if share is None:
        return f"{cores}; the share of FLOP/s was not measured (no machine.json)."
    return f"{share:.0%} of the FLOP/s that matrix products reach here; {cores}."


def generalisation_verdict(row: Row, base: Row) -> str:
    """Compare the gap from training to validation loss, and the loss on other text."""
    shifted, there = (r.summary.get("shifted_loss") for r in (row, base))
    words, said = [], []
    if row.gap is not None and base.gap is not None:
        words.append(compare(1 + (row.gap - base.gap) / base.loss, 1))
        said.append(f"gap {row.gap:+.3f} against {base.gap:+.3f}")
    if shifted is not None and there is not None:
        words.append(compare(shifted, there))
        said.append(f"loss elsewhere {digits(shifted)} against {digits(there)}")
    if not words:
        return "Not measured: a loss is missing or not finite."
    if row is base:
        said = [part.rpartition(" against ")[0] for part in said]
        return f"{', '.join(said).capitalize()}."
    worst = max(words, key=["better", "same", "worse"].index)
    return f"{worst.capitalize()}: {', '.join(said)}."


def amdahl_serial_share(degrees: list[float], speed_ups: list[float]) -> float:
    """Fit 1 / S(N) = s + (1 - s) / N, 0 <= s <= 1, by least squares (Amdahl 1967)."""
    inverse = 1 / np.asarray(speed_ups)
    shrinks = 1 - 1 / np.asarray(degrees)
    excess = inverse - 1 / np.asarray(degrees)
    weight = float(shrinks @ shrinks)
    return float(np.clip(shrinks @ excess / weight, 0, 1)) if weight else 0.0


def median_rates(rows: list[Row]) -> dict[str, dict[int, float]]:
    """Return label -> degree -> tokens/s of real devices, the median over seeds."""
    found = {}
    for name, alike in by_label([row for row in rows if not row.emulated]).items():
        degrees = sorted({row.devices for row in alike})
        found[name] = {
            n: statistics.median(r.rate for r in alike if r.devices == n) for n in degrees
        }
    return {name: rates for name, rates in found.items() if len(rates) > 1}
