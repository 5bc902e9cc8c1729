"""The links of a run as values: what they are like at first, and what changes when.

A file for `experiments.launch --links=FILE.py` has a function that returns a list:

    from experiments.processes.network.changes import Change
    from experiments.processes.network.link import Link

    def get_links():
        return [
            Change(Link(delay=0.025, loss=0.001)),  # all, from the start
            Change(None, after=60, between=(1, 2)),  # cut
            Change(Link(delay=0.025), after=75, between=(1, 2)),  # mended
        ]
"""

import contextlib
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.processes.network.emulator import Network
from experiments.processes.network.link import Link


@dataclass(frozen=True)
class Change:
    link: Link | None  # what a link is from now on; None: cut
    after: float = 0.0  # seconds after the processes have been started
    between: tuple[int, int] | None = None  # two processes; None: all links
    one_way: bool = False  # only from the first of the two to the second

    def __str__(self) -> str:
        where = "all links"
        if self.between:
            word = "to" if self.one_way else "and"
            where = f"the link {self.between[0]} {word} {self.between[1]}"
        if self.link is None:
            return f"{where}: cut"
        given = [f"{name} {x:g}" for name, x in self.link.told().items()]
        return f"{where}: {', '.join(given) or 'as good as the machine allows'}"


def check(file: str, changes: Any, num_hosts: int) -> list[Change]:
    """Return the changes; ValueError for one that cannot be made."""
    if not isinstance(changes, list | tuple) or not changes:
        raise ValueError(f"{file}: get_links() returns {changes!r}; expected a list")
    for change in changes:
        if not isinstance(change, Change) or not isinstance(change.link, Link | None):
            raise ValueError(f"{file}: {change!r} is no Change of a Link, or of None")
        after = change.after
        if not isinstance(after, int | float) or not 0 <= after < math.inf:
            raise ValueError(f"{file}: after {after!r} is not a number of seconds")
        if change.between is None:
            if change.one_way:
                raise ValueError(f"{file}: one_way needs `between`, two processes")
            continue
        pair, hosts = change.between, range(num_hosts)
        is_pair = isinstance(pair, tuple | list) and len(pair) == 2 and pair[0] != pair[1]
        if not is_pair or not all(host in hosts for host in pair):
            raise ValueError(
                f"{file}: there is no link between {pair!r}; expected two of the processes "
                f"0 to {num_hosts - 1}"
            )
    return list(changes)


def make(net: Network, change: Change) -> None:
    hosts = range(net.num_hosts)
    pairs = (
        [change.between] if change.between else [(a, b) for b in hosts for a in range(b)]
    )
    for a, b in pairs:
        if change.link is None:
            net.cut(a, b, change.one_way)
        else:
            net.set_link(a, b, change.link, change.one_way)
            net.mend(a, b, change.one_way)


@contextlib.contextmanager
def played(net: Network, changes: Sequence[Change]) -> Iterator[None]:
    """Make the changes as their time comes, until the block ends; say each on stderr."""

    def play(change: Change) -> None:
        make(net, change)
        print(f"after {change.after:g} s, {change}", file=sys.stderr, flush=True)

    timers = [
        threading.Timer(change.after, play, [change]) for change in changes if change.after
    ]
    for change in changes:
        if not change.after:
            play(change)
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
