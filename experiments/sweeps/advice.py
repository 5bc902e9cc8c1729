"""Recommend a batch size and a degree after a sweep, with reasons."""

import statistics

import numpy as np

from experiments.processes.messages import human
from experiments.run.noise_scale import WINDOW
from experiments.sweeps.rows import Row, reached
from experiments.sweeps.tables import digits
from experiments.sweeps.verdicts import (
    FASTER,
    SAME,
    USEFUL,
    devices,
    efficiency,
    speed_up,
    tied,
)

STEADY = 1.25  # a noise scale that changes by a smaller factor in WINDOW steps is steady
MOST_NAMES = 4  # of tied runs that are named


def why_not_yet(row: Row) -> str | None:
    """Say why a run's noise scale may not be used yet; None if it may.

    The noise scale grows by orders of magnitude while the loss falls, fastest at the
    beginning (McCandlish et al. 2018, 3). Early in a run it would recommend far too small a
    batch. So two conditions must hold: its window of steps lies after the warm-up; and the
    validation loss is below the bigram model's, or the noise scale has become steady.
    """
    steps, warmup = row.config["steps"], row.config["optim.warmup_steps"]
    if steps < warmup + WINDOW:
        return (
            f"{row.name} took {steps} steps, and needs {warmup + WINDOW}: its warm-up of "
            f"{warmup} and then the {WINDOW} that the noise scale is averaged over"
        )
    bigram = row.summary["bigram_loss"]
    if row.loss < bigram:
        return None
    scales = {r["step"]: r.get("noise_scale") for r in row.of("train")}
    before, last = scales.get(steps - WINDOW), scales.get(steps)
    if before and last and max(before / last, last / before) <= STEADY:
        return None
    change = (
        f"from {human(before)} to {human(last)} tokens in the last {WINDOW} steps"
        if before and last
        else f"and its noise scale is not known {WINDOW} steps before the end"
    )
    return (
        f"the validation loss of {row.name}, {digits(row.loss)}, is not yet below that of "
        f"a bigram model, {digits(bigram)}, and its noise scale still changes: {change}"
    )


def noise_scales(rows: list[Row]) -> list[float]:
    """Return the noise scales that may be used, in tokens."""
    measured = [row for row in rows if row.summary.get("noise_scale")]
    return [row.summary["noise_scale"] for row in measured if not why_not_yet(row)]


def noise_scale(rows: list[Row]) -> float | None:
    """Return the median, over runs, of the noise scale at their end, in tokens."""
    found = noise_scales(rows)
    return statistics.median(found) if found else None


def tokens_to(row: Row, target: float) -> float | None:
    """Return the tokens at which the validation curve first reaches a loss."""
    return reached([(tokens, loss) for _, tokens, loss in row.curve()], target)


def critical_batch(rows: list[Row]) -> float | None:
    """Fit E = E_min (1 + B / B_crit) to the tokens E that a batch size B takes to a loss.

    Returns B_crit in tokens: there a run takes twice the fewest steps and twice the fewest
    tokens (McCandlish et al. 2018, 2.3). The loss is the lowest that every batch size
    reaches; the quickest run of each batch size counts. None if fewer than three batch
    sizes have one, or if larger batches did not need more tokens.
    """
    rows = [row for row in rows if not row.grows]
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


def recommendation(rows: list[Row], base_of: dict[str, Row]) -> list[str]:
    """Say which batch size and which degree to take, and which run learnt the most."""
    return [*batch_advice(rows), degree_advice(rows, base_of), loss_advice(rows)]


def in_rows(tokens: float, row: Row) -> str:
    length = row.config["data.seq_len"]
    return f"about {max(round(tokens / length), 1):,} rows ({human(tokens)} tokens)"


def batch_advice(rows: list[Row]) -> list[str]:
    said = []
    measured = [row for row in rows if row.summary.get("noise_scale")]
    used = noise_scales(rows)
    if used:
        spread = f", {human(min(used))} to {human(max(used))}" if len(used) > 1 else ""
        said.append(
            f"Batch size: {in_rows(statistics.median(used), rows[0])}. This is the "
            f"gradient noise scale at the end (the median of {len(used)} of {len(rows)} "
            f"runs{spread}). Below it, twice the rows take about half the steps; above it, "
            "more rows mostly cost more tokens."
        )
        said += growth_advice(rows)
    elif measured:
        last = min(measured, key=lambda row: row.loss)
        said.append(
            "Batch size: no answer yet. It is too early to use the gradient noise scale of "
            f"the {len(measured)} run(s) that measured it; for example, "
            f"{why_not_yet(last)}. Train longer."
        )
    else:
        said.append(
            "Batch size: no run measured the gradient noise scale. It needs two devices or "
            "more with shard_map, pmap, zero1 or zero2, or microbatches "
            "(parallel.accumulation)."
        )
    if critical := critical_batch(rows):
        said.append(
            f"Batch size, by the losses of this sweep: at {in_rows(critical, rows[0])} a "
            "run needs twice as many tokens to the same loss as with the smallest batches."
        )
    return said


def growth_schedule(row: Row) -> tuple[list[tuple[int, int]], int]:
    """Return data.growth, and the steps in which it reads as many rows as a finished run.

    A batch of twice as many rows begins where the noise scale of the run was below it for
    the last time. So no batch is larger than the noise scale was at that row of the text.
    """
    batch, steps = row.config["data.batch_size"], row.config["steps"]
    tokens_of_row = row.of("train")[-1]["tokens"] / (batch * steps)
    scales = [
        (r["step"], r["noise_scale"] / tokens_of_row)
        for r in row.of("train")
        if r.get("noise_scale")
    ]
    growth, size, start, read = [], batch, 0, 0  # `read` rows in `start` steps
    while scales:
        below = [step for step, scale in scales if scale < 2 * size]
        last = max(below, default=scales[0][0])
        if last == scales[-1][0]:
            break
        start += -(-(last * batch - read) // size)
        size, read = 2 * size, last * batch
        growth = [phase for phase in growth if phase[0] < start] + [(start, size)]
    return growth, start + -(-(steps * batch - read) // size)


def growth_advice(rows: list[Row]) -> list[str]:
    """Propose a batch that grows as the noise scale of the best run did."""
    able = [r for r in rows if r.summary.get("noise_scale") and not why_not_yet(r)]
    best = min((r for r in able if not r.grows), key=lambda r: r.loss, default=None)
    growth, steps = growth_schedule(best) if best else ([], 0)
    if not growth:
        return []
    before = best.config["steps"]
    return [
        f"Batch growth: data.growth={tuple(growth)} with steps={steps} reads as many rows "
        f"as {best.name} in {1 - steps / before:.0%} fewer steps, with no batch above its "
        "noise scale there. The learning rate goes by steps: fit its schedule to them."
    ]


def degree_advice(rows: list[Row], base_of: dict[str, Row]) -> str:
    larger = [row for row in rows if row.devices > base_of[row.name].devices]
    real = [row for row in larger if not row.emulated]
    useful = [
        row
        for row in real
        if efficiency(row, base_of[row.name]) >= USEFUL
        and speed_up(row, base_of[row.name]) >= FASTER
    ]
    if useful:
        most = max(useful, key=lambda row: (row.devices, row.rate))
        base = base_of[most.name]
        return (
            f"Degree: {devices(most.devices)}, the most that are at least {USEFUL:.0%} "
            f"efficient: {human(most.rate)} tokens/s against {human(base.rate)} on "
            f"{devices(base.devices)}, {speed_up(most, base):.2f} times as fast."
        )
    if real:
        best = max(real, key=lambda row: speed_up(row, base_of[row.name]))
        base = base_of[best.name]
        return (
            f"Degree: the smallest. No larger one is faster and {USEFUL:.0%} efficient; "
            f"the best, {best.name}, has {human(best.rate)} tokens/s against "
            f"{human(base.rate)} on {devices(base.devices)}, {speed_up(best, base):.2f} "
            f"times as fast ({efficiency(best, base):.0%} efficient)."
        )
    if larger:
        return (
            "Degree: no answer, because emulated devices share the machine's cores and so "
            "have no speed of their own. Losses, bytes and memory are as on real devices."
        )
    numbers = " or ".join(map(str, sorted({row.devices for row in rows})))
    return (
        f"Degree: no answer. The runs have {numbers} device(s), and no two runs differ in "
        "the number of devices alone."
    )


def loss_advice(rows: list[Row]) -> str:
    """Name the lowest loss, or say that runs tie for it."""
    if len({row.config.get("fingerprint") for row in rows}) > 1:
        return "Loss: not compared, for the runs differ in text, tokenizer or row length."
    best, *others = sorted(rows, key=lambda row: row.loss)
    if not others:
        return f"Loss: {digits(best.loss)} nats a token, of the only run, {best.name}."
    ties = [best, *tied(best, others)]
    if len(ties) == 1:
        second = others[0]
        return (
            f"Loss: {best.name} has the lowest, {digits(best.loss)} nats a token; the "
            f"next, {second.name}, has {digits(second.loss)}."
        )
    ends = [digits(best.loss), digits(max(row.loss for row in ties))]
    span = f"{' to '.join(dict.fromkeys(ends))} nats a token"
    if len(ties) == len(rows):
        return (
            f"Loss: all {len(rows)} runs tie, within {SAME:.1%}: {span}. The loss does not "
            "decide between them."
        )
    named = ", ".join(row.name for row in ties[:MOST_NAMES])
    more = f" and {len(ties) - MOST_NAMES} more" if len(ties) > MOST_NAMES else ""
    return (
        f"Loss: {len(ties)} of {len(rows)} runs tie for the lowest, within {SAME:.1%}: "
        f"{span} ({named}{more})."
    )
