"""What is compared: pushes that are some updates late, plain and under remedies."""

import dataclasses

from configs.base import Experiment
from configs.sweeps.combine import Member
from experiments.studies.asynchronous.members import base_config
from experiments.studies.asynchronous.rates import place

STALENESS = (0, 1, 2, 4, 8)
PLAIN = "plain"
METHODS: dict[str, Member] = {
    PLAIN: {},
    "1/staleness": {"parallel.server.weigh": "inverse"},
    "DC-ASGD, lambda 2": {"parallel.server.compensation": 2.0},
    # The square of a batch's mean gradient is smaller than a token's by about its tokens.
    "DC-ASGD, lambda 500": {"parallel.server.compensation": 500.0},
    "momentum 0.5": {"optim.b1": 0.5},
    "no momentum": {"optim.b1": 0.0},
}
# These are `plain` where no push is late: there is no staleness, and nothing to correct.
SAME_IF_FRESH = ("1/staleness", "DC-ASGD, lambda 2", "DC-ASGD, lambda 500")
RATE, MOMENTUM = 0.5, 0.9  # about the best rate of plain pushes that are not late


def short_config() -> Experiment:
    """Return the usual model and text, in rows half as long: 512 tokens an update."""
    config = base_config()
    data = dataclasses.replace(config.data, seq_len=32)
    return dataclasses.replace(config, data=data)


def pairs() -> list[tuple[str, int]]:
    return [
        (method, staleness)
        for staleness in STALENESS
        for method in METHODS
        if staleness or method not in SAME_IF_FRESH
    ]


def stale(staleness: int, method: str, rate: float) -> Member:
    """W workers that take turns push W - 1 updates late, after their first pushes."""
    return {
        "parallel.strategy": "parameter_server",
        "parallel.data": 1,
        "parallel.server.mode": "async",
        "parallel.server.workers": staleness + 1,
        "parallel.server.shards": 1,
        "optim.learning_rate": rate,
        **METHODS[method],
    }


def middle(method: str, staleness: int) -> int:
    """Return where the search of a rate begins, in proportion to what is stable.

    A gradient moves the parameters by rate / (1 - momentum) in the end. The largest stable
    rate falls about as 1 / (1 + staleness).
    """
    momentum = METHODS[method].get("optim.b1", MOMENTUM)
    return place(RATE * (1 - momentum) / (1 - MOMENTUM) / (1 + staleness))
