"""The table and the picture of runs whose parallelism changes on the way."""

import numpy as np

from experiments.studies.phases.members import BASE, MEMBERS, borders
from experiments.sweeps.looks import WIDTH, legend, plain_ticks, png, pyplot, style
from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown

NEAR = 5  # steps on each side of a border whose losses are averaged
NONE = "Not measured yet."


def longest(lines: list[Line]) -> dict[str, list[Line]]:
    """Return the lines of each run, of the largest number of steps."""
    steps = max(line["steps"] for line in lines)
    return {
        member: found
        for member in MEMBERS
        if (found := [x for x in lines if (x["member"], x["steps"]) == (member, steps)])
    }


def differences(lines: list[Line], base: list[Line]) -> np.ndarray:
    """Return float[n, steps]: each step's loss less that of the base with the same seed."""
    curves = {line["seed"]: np.array(line["curve"]) for line in base}
    return np.array(
        [np.array(x["curve"]) - curves[x["seed"]] for x in lines if x["seed"] in curves]
    )


def jump(difference_S: np.ndarray, border: int) -> float:
    """Return by how much more than the unchanged run the loss rises at a border."""
    after = difference_S[border : border + NEAR].mean()
    return float(after - difference_S[border - NEAR : border].mean())


def change_table(lines: list[Line]) -> str:
    """Show how far each run is from the unchanged one, by phase, and its jumps."""
    if not any(line["member"] == BASE for line in lines):
        return NONE
    found = longest(lines)
    base, body = found[BASE], []
    starts = borders(base[0]["steps"])
    for member, own in found.items():
        row = [member, f"{np.mean([line['loss'] for line in own]):.4f}"]
        if member != BASE:
            different = differences(own, base)
            parts = np.split(np.abs(different), starts, axis=1)
            row += [f"{part.max():.1e}" for part in parts]
            row += [f"{np.mean([jump(x, at) for x in different]):+.1e}" for at in starts]
        body.append(row + [""] * (2 + 3 + 2 - len(row)))
    head = [
        "", "validation loss", "phase 1", "phase 2", "phase 3", "first border", "second",
    ]  # fmt: skip
    return markdown(head, body)


def picture(lines: list[Line]) -> bytes:
    """Draw the losses, and how far each run is from the unchanged one; of the seed 0."""
    found = longest([line for line in lines if line["seed"] == 0])
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(WIDTH, 4.2), layout="constrained"
    )
    base = np.array(found[BASE][0]["curve"])
    for index, (member, (line, *_)) in enumerate(found.items()):
        curve, how = np.array(line["curve"]), style(index) | {"marker": "", "lw": 1}
        if member == BASE:  # equal curves lie on it
            how |= {"lw": 4, "alpha": 0.4}
        steps = np.arange(1, len(curve) + 1)
        left.plot(steps[NEAR - 1 :], smooth(curve), label=member, **how)
        if member != BASE:
            # Equal losses have no place on a logarithmic axis.
            apart = np.maximum(np.abs(curve - base), 1e-8)
            right.plot(steps[NEAR - 1 :], smooth(apart), **how)
    for axes in (left, right):
        for border in borders(len(base)):
            axes.axvline(border, color="#555555", ls=":", lw=1)
        axes.set_xlabel("step (dotted: a change)")
    left.set_ylabel(f"training loss, mean of {NEAR} steps (nats a token)")
    right.set_ylabel("distance from the run that never changes")
    right.set_yscale("log")
    plain_ticks(left.yaxis)
    legend(figure, left.get_legend_handles_labels()[0])
    return png(figure)


def smooth(curve_S: np.ndarray) -> np.ndarray:
    return np.convolve(curve_S, np.ones(NEAR) / NEAR, mode="valid")
