"""The tables of stale pushes: the loss, and the share of its rise that is won back."""

import statistics

from experiments.studies.asynchronous.rates import best_place, place
from experiments.studies.staleness.members import METHODS, PLAIN, SAME_IF_FRESH, STALENESS
from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown, over_seeds

NONE = "Not measured yet."


class Found:
    """The losses of the longest runs, by method, staleness, rate and seed."""

    def __init__(self, lines: list[Line]):
        steps = max((x["steps"] for x in lines), default=0)
        self.losses: dict[tuple[str, int], dict[int, dict[int, float]]] = {}
        for x in lines:
            if x["steps"] == steps:
                of = self.losses.setdefault((x["method"], x["staleness"]), {})
                of.setdefault(place(x["rate"]), {})[x["seed"]] = x["loss"]

    def tuning(self, method: str, staleness: int) -> dict[int, float]:
        """Return the loss of the first seed at each place that was tried."""
        of = self.losses.get((method, staleness), {})
        return {place: seeds[0] for place, seeds in of.items() if 0 in seeds}

    def best(self, method: str, staleness: int) -> tuple[int, list[float]] | None:
        """Return the best place, and the losses of all seeds there."""
        method = PLAIN if not staleness and method in SAME_IF_FRESH else method
        tried = self.tuning(method, staleness)
        if not tried:
            return None
        best = best_place(tried)
        return best, list(self.losses[method, staleness][best].values())

    def mean(self, method: str, staleness: int) -> float | None:
        found = self.best(method, staleness)
        return statistics.fmean(found[1]) if found else None


def loss_table(lines: list[Line]) -> str:
    """Show each method's mean loss at its best rate, its range over the seeds, the rate."""
    found = Found(lines)
    if not found.losses:
        return NONE
    body = [
        [method, *(loss_cell(found, method, staleness) for staleness in STALENESS)]
        for method in METHODS
    ]
    return markdown(["", *(f"staleness {x}" for x in STALENESS)], body)


def loss_cell(found: Found, method: str, staleness: int) -> str:
    best = found.best(method, staleness)
    if best is None:
        return ""
    place, losses = best
    tried = found.tuning(method, staleness)
    at = "; an edge" if tried and place in (min(tried), max(tried)) else ""
    return f"{over_seeds(losses)} (rate {2.0**place:.3g}{at})"


def won_table(lines: list[Line]) -> str:
    """Show the share of what staleness costs plain pushes that each remedy wins back."""
    found = Found(lines)
    fresh = found.mean(PLAIN, 0)
    if fresh is None:
        return NONE
    rows = [["what staleness costs", *(cost(found, fresh, s) for s in STALENESS[1:])]]
    for method in [each for each in METHODS if each != PLAIN]:
        shares = [won(found, fresh, method, staleness) for staleness in STALENESS[1:]]
        rows.append([method, *shares])
    return markdown(["", *(f"staleness {x}" for x in STALENESS[1:])], rows)


def cost(found: Found, fresh: float, staleness: int) -> str:
    plain = found.mean(PLAIN, staleness)
    return "" if plain is None else f"{plain - fresh:+.4f}"


def won(found: Found, fresh: float, method: str, staleness: int) -> str:
    plain, loss = found.mean(PLAIN, staleness), found.mean(method, staleness)
    if plain is None or loss is None or plain <= fresh:
        return ""
    return f"{(plain - loss) / (plain - fresh):.0%}"
