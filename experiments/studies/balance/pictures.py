"""Gantt pictures: who runs which piece when, a panel for each policy."""

import numpy as np

from experiments.studies.balance.instances import instance
from experiments.studies.balance.optimum import optimum
from experiments.sweeps.looks import COLORS, WIDTH, png, pyplot
from parallel.balance.policies import POLICIES
from parallel.balance.simulate import Ran, makespan, simulate

COLUMNS = 3
REPEATED = "#cccccc"  # of a run that does not count: a copy, or what its worker died at


def gantt(condition: str, seed: int) -> bytes:
    """Draw what each policy does with one instance of 24 pieces for 5 workers."""
    case = instance("speeds", condition, 24, 5, seed, 0)
    best = optimum(case.actual_NM, case.troubles, seconds=10.0).lower
    num_rows = -(-len(POLICIES) // COLUMNS)
    figure, panels = pyplot.subplots(
        num_rows, COLUMNS, figsize=(WIDTH, 1.5 * num_rows), sharey=True,
        layout="constrained",
    )  # fmt: skip
    for panel, (name, policy) in zip(panels.flat, POLICIES.items(), strict=False):
        ran = simulate(policy, case.told_NM, case.actual_NM, case.troubles)
        draw(panel, ran)
        panel.axvline(best, color="#555555", ls="--", lw=1)
        ratio = makespan(ran) / best
        panel.set_title(f"{name}: {ratio:.2f}", fontsize=8, loc="left")
        panel.tick_params(labelsize=7)
    for panel in panels.flat[len(POLICIES) :]:
        panel.axis("off")
    figure.supxlabel("seconds (dashed: the optimum)", fontsize=8)
    figure.supylabel("worker", fontsize=8)
    return png(figure)


def draw(panel, ran: list[Ran]) -> None:
    for each in ran:
        color = COLORS[each.piece % len(COLORS)] if each.counts else REPEATED
        panel.barh(
            each.worker, each.end - each.start, left=each.start, color=color,
            edgecolor="white", lw=0.5, height=0.8,
        )  # fmt: skip
    workers = np.arange(1 + max(each.worker for each in ran))
    panel.set(yticks=workers, ylim=(workers[-1] + 0.6, -0.6))
