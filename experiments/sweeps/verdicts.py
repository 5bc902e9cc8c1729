"""Did parallelism pay? Four answers for each run of a sweep, and what to choose.

Time, quality, utilisation, generalisation: each is a comparison with the run on the fewest
devices that is else the same, or a share of the machine's own limit.
"""

import statistics
from typing import NamedTuple

import numpy as np

from experiments.sweeps.rows import Row, baseline, by_label

SAME = 0.005  # relative; losses nearer than this are called equal
FASTER = 1.05  # a smaller speed-up is within the noise of a machine that others use, too
USEFUL = 0.5  # parallel efficiency below which half of each device is wasted


class Verdict(NamedTuple):
    time: str
    quality: str
    utilisation: str
    generalisation: str


def verdict(row: Row, rows: list[Row], limit: float | None) -> Verdict:
    """Judge a run; `limit` is the FLOP/s of one device (of a CPU: of all its cores)."""
    base = baseline(row, rows)
    return Verdict(
        time_verdict(row, base),
        quality_verdict(row, rows, base),
        utilisation_verdict(row, limit),
        generalisation_verdict(row, base),
    )


def speed_up(row: Row, base: Row) -> float:
    return row.rate / base.rate


def efficiency(row: Row, base: Row) -> float:
    return speed_up(row, base) * base.devices / row.devices


def time_verdict(row: Row, base: Row) -> str:
    if row is base:
        return "baseline"
    gain = speed_up(row, base)
    if row.emulated:
        return (
            f"cannot say: {row.devices} emulated devices share the cores "
            f"(a token takes {1 / gain:.2f} times as long)"
        )
    if row.devices == base.devices:
        return f"{gain:.2f} x as fast as {base.name}"
    word = "yes" if gain >= FASTER else "no"
    return (
        f"{word}: {gain:.2f} x as fast on {row.devices / base.devices:g} x the devices "
        f"({efficiency(row, base):.0%} efficient)"
    )


def compare(value: float, reference: float) -> str:
    """Say of two losses which is the better one."""
    change = value / reference - 1
    if abs(change) <= SAME:
        return "equal"
    return "better" if change < 0 else "worse"


def quality_verdict(row: Row, rows: list[Row], base: Row) -> str:
    # Another seed is no choice that one could make.
    rivals = [r for r in rows if r.config["seed"] == row.config["seed"]]
    best = min((r for r in rivals if r.devices == base.devices), key=lambda r: r.loss)
    perplexity = row.summary["val_perplexity"]
    if row is best:
        return f"best of its degree: perplexity {perplexity:.2f}"
    word = {"equal": "yes, equal", "better": "yes, better", "worse": "no, worse"}
    return (
        f"{word[compare(row.loss, best.loss)]}: perplexity {perplexity:.2f}, "
        f"{best.summary['val_perplexity']:.2f} at best on {base.devices}"
    )


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
    said = "" if share is None else f"{share:.0%} of the machine's products; "
    return f"{said}its cores busy {busy:.0%} of a step"


def generalisation_verdict(row: Row, base: Row) -> str:
    shifted = row.summary["shifted_loss"]
    said = f"gap {row.gap:+.3f}" + ("" if shifted is None else f", elsewhere {shifted:.3f}")
    if row is base:
        return f"baseline: {said}"
    change = row.gap - base.gap
    words = [compare(1 + change / base.loss, 1)]
    if shifted is not None:
        words.append(compare(shifted, base.summary["shifted_loss"]))
    worst = max(words, key=["better", "equal", "worse"].index)
    return f"{'no' if worst == 'worse' else 'yes'}, {worst}: {said}"


def amdahl_serial_share(degrees: list[float], speed_ups: list[float]) -> float:
    """Fit 1 / S(N) = s + (1 - s) / N, 0 <= s <= 1, by least squares (Amdahl 1967)."""
    inverse = 1 / np.asarray(speed_ups)
    shrinks = 1 - 1 / np.asarray(degrees)
    excess = inverse - 1 / np.asarray(degrees)
    weight = float(shrinks @ shrinks)
    return float(np.clip(shrinks @ excess / weight, 0, 1)) if weight else 0.0


def tokens_to(row: Row, target: float) -> float | None:
    """Return the tokens at which the validation curve first reaches a loss (linear)."""
    before = None
    for _, tokens, loss in row.curve():
        if loss <= target:
            if before is None:
                return None  # reached before the first point: no telling when
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (tokens - before[0])
        before = (tokens, loss)
    return None


def critical_batch(rows: list[Row]) -> float | None:
    """Fit E = E_min (1 + B / B_crit) to the tokens E that a batch size B takes to a loss.

    In tokens (McCandlish et al. 2018, 2.3: at B_crit a run takes twice the fewest steps and
    twice the fewest tokens). The loss is the lowest that every batch size reaches; of each
    batch size the run that is the quickest counts. None if fewer than three tell, or if
    more tokens were no loss.
    """
    sizes = sorted({row.batch_tokens for row in rows})
    lowest: dict[int, float] = {}
    for row in rows:
        for _, _, loss in row.curve():
            size = row.batch_tokens
            lowest[size] = min(loss, lowest.get(size, loss))
    if len(lowest) < 3:
        return None
    target = max(lowest.values())
    points = []
    for size in sizes:
        alike = [tokens_to(r, target) for r in rows if r.batch_tokens == size]
        found = [tokens for tokens in alike if tokens]
        if found:
            points.append((size, min(found)))
    if len(points) < 3:
        return None
    slope, start = np.polyfit(*np.array(points, float).T, 1)
    return float(start / slope) if slope > 0 and start > 0 else None


def noise_scale(rows: list[Row]) -> float | None:
    """Return the median, over runs, of the noise scale at their end, in tokens."""
    found = [r.summary["noise_scale"] for r in rows if r.summary.get("noise_scale")]
    return statistics.median(found) if found else None


def recommendation(rows: list[Row]) -> list[str]:
    """Say which batch size and which degree to take, and why."""
    said = []
    # Losses that differ by rounding are one: then on the fewest devices.
    best = min(rows, key=lambda row: (round(row.loss, 3), row.devices))
    scale, critical = noise_scale(rows), critical_batch(rows)
    length = best.config["data.seq_len"]
    if scale:
        said.append(
            f"Batch size: about {scale / length:.0f} rows ({scale:.0f} tokens), the "
            "gradient noise scale at the end. Below it more rows save steps in proportion; "
            "above it they mostly cost tokens."
        )
    if critical:
        said.append(
            "By the batch sizes of this sweep themselves, tokens to a common loss double "
            f"at about {critical / length:.0f} rows ({critical:.0f} tokens)."
        )
    real = [row for row in rows if not row.emulated]
    useful = [
        row
        for row in real
        if row.devices > (base := baseline(row, rows)).devices
        and efficiency(row, base) >= USEFUL
        and speed_up(row, base) >= FASTER
    ]
    if useful:
        most = max(useful, key=lambda row: (row.devices, row.rate))
        base = baseline(most, rows)
        said.append(
            f"Degree: {most.devices}, the largest that is at least {USEFUL:.0%} efficient "
            f"({speed_up(most, base):.2f} x as fast as {base.devices})."
        )
    elif any(row.devices > baseline(row, rows).devices for row in real):
        said.append("Degree: the smallest; no larger one paid in time here.")
    else:
        rows_each = max(1, round((scale or best.batch_tokens) / length))
        said.append(
            "Degree: these runs cannot tell which is fastest, for emulated devices share "
            f"the cores. At the batch size above, up to {rows_each} devices have a row."
        )
    said.append(f"The lowest loss, {best.loss:.4f}, is that of {best.name}.")
    return said


def median_rates(rows: list[Row]) -> dict[str, dict[int, float]]:
    """Return label -> degree -> tokens/s of real devices, the median over seeds."""
    found = {}
    for name, alike in by_label([row for row in rows if not row.emulated]).items():
        degrees = sorted({row.devices for row in alike})
        found[name] = {
            n: statistics.median(r.rate for r in alike if r.devices == n) for n in degrees
        }
    return {name: rates for name, rates in found.items() if len(rates) > 1}
