"""The grid of links, and who is timed over it."""

import math
from typing import NamedTuple

from configs.sweeps.combine import Member
from configs.sweeps.strategies import MEMBERS
from experiments.processes.network.emulator import Network
from experiments.processes.network.link import Link

HOSTS = 4
TIMED_EVERY = 4  # H at which members that average every H steps are timed
# Where a link is bad: everywhere, between two hosts, or between two groups of two.
PAIRS = {
    "all": [(a, b) for a in range(HOSTS) for b in range(a + 1, HOSTS)],
    "one": [(0, 1)],
    "between": [(0, 2), (0, 3), (1, 2), (1, 3)],
}


class Cell(NamedTuple):
    """What the bad links are like; the others are as good as the machine allows."""

    where: str
    rtt: float  # milliseconds there and back
    rate: float  # megabits a second; 0: no limit
    loss: float  # percent of the packets, in each direction


RTTS, LOSSES = (0, 1, 10, 50, 150), (0.1, 1)
# A connection that has lost packets stays slow for many steps, so the cells that lose some,
# to a full queue too, are the last. Losses alone, and with a rate at one point: at the full
# cross a member took an hour.
GRID = [
    *(Cell("all", rtt, 0, 0) for rtt in RTTS),
    Cell("one", 50, 0, 0),
    Cell("between", 50, 0, 0),
    Cell("between", 50, 100, 0),
    *(Cell("all", rtt, 100, 0) for rtt in RTTS),
    Cell("between", 0, 10, 0),
    *(Cell("all", rtt, 10, 0) for rtt in RTTS),
    *(Cell("all", rtt, 0, loss) for loss in LOSSES for rtt in (10, 50, 150)),
    Cell("all", 50, 10, 1),
    Cell("one", 50, 0, 1),
]
QUICK = [
    *(Cell("all", rtt, 0, 0) for rtt in RTTS),
    *(Cell("all", rtt, 10, 0) for rtt in (0, 50)),
    Cell("all", 50, 100, 0),
    *(Cell("all", 50, 0, loss) for loss in (0.1, 1)),
    Cell("one", 50, 0, 1),
    Cell("between", 50, 100, 0),
]

# The time of a step is c + k x round trip + bytes x 8 / rate; these cells give c, k, bytes.
FITTED = [Cell("all", rtt, rate, 0) for rtt in (0, 50) for rate in (0, 10)]

TIMED: dict[str, Member] = {
    **{
        name: MEMBERS[name]
        for name in ("shard_map", "ring", "tree", "halving_doubling", "p2p", "all_gather")
    },
    "hierarchical": {
        **MEMBERS["shard_map"],
        "parallel.exchange.algorithm": "hierarchical",
        "parallel.slice": 2,
    },
    "buckets of 256 kB": {
        **MEMBERS["shard_map"],
        "parallel.exchange.bucket_bytes": 1 << 18,
    },
    **{
        name: MEMBERS[name]
        for name in ("fsdp", "int8", "top_k-1%", "power_sgd-4", "local_sgd-8", "diloco-50")
    },
}


def apply(net: Network, cell: Cell) -> None:
    """Give the network the links of a cell.

    If all links have a rate, it is that of a host's interface, which its links share.
    """
    shared = cell.where == "all"
    rate = cell.rate * 1e6 or math.inf
    net.set_links(Link())
    net.set_rate(rate if shared else math.inf)
    bad = Link(
        delay=cell.rtt / 2000, loss=cell.loss / 100, rate=math.inf if shared else rate
    )
    for a, b in PAIRS[cell.where]:
        net.set_link(a, b, bad)
