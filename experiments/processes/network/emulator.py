"""Hosts on one machine, joined by links that are slow, far, lossy or cut, as one wishes.

with network(3, Link(delay=0.025, loss=0.01), seed=1) as net:
    ...                                   # start processes with namespaces.inside
    net.set_link(0, 1, Link(rate=10e6))   # while they run
    net.cut(1, 2, one_way=True)

Each host is a network namespace whose only interface is a TUN device. All packets pass
through one process (forwarder.py), which delays, drops and changes them. No packet leaves
the machine. Needs Linux and root. What runs above (Gloo, Ray, HTTP) knows nothing of it.
"""

import collections
import contextlib
import json
import math
import pathlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from experiments.processes import namespaces
from experiments.processes.network.direction import Counters
from experiments.processes.network.link import WORD, Link

ROOT = pathlib.Path(__file__).parents[3]
# Not `python -m`: that would start the process again under JAX's allocator.
START = "from experiments.processes.network.forwarder import main; main()"
END_SECONDS = 10.0
# The forwarder is never late by so many packets, so the kernel drops none.
WAITING_PACKETS = 20_000
MTUS = (576, 65_000)  # bytes: what every host of IPv4 takes, what a TUN device takes
# Settings of the namespace of the thread that reads them.
CONGESTION = pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control")
ALLOWED = pathlib.Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


Way = tuple[int, int]  # from a host, to another


class Impairment(NamedTuple):
    """What lies over some directions for a time."""

    ways: list[Way]
    link: Link | None  # None: cut


class Network:
    """Links between hosts 0 to N - 1; RuntimeError if the process between them has died."""

    def __init__(self, num_hosts: int, process: subprocess.Popen):
        self.num_hosts, self.process = num_hosts, process
        self.lock = threading.RLock()  # any thread may ask
        self.links: dict[Way, Link] = collections.defaultdict(Link)
        self.cuts: set[Way] = set()
        self.impairments: list[Impairment] = []  # the last one of a direction counts

    def answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                "the process that passes packets on has ended; its message stands above"
            )
        return json.loads(line)

    def tell(self, order: str, **details: Any) -> Any:
        with self.lock:
            with contextlib.suppress(BrokenPipeError):  # the answer tells
                self.process.stdin.write(json.dumps({"order": order, **details}) + "\n")
                self.process.stdin.flush()
            return self.answer()

    def check_host(self, host: int) -> None:
        if host not in range(self.num_hosts):
            raise ValueError(
                f"there is no host {host}; the network has the hosts 0 to "
                f"{self.num_hosts - 1}"
            )

    def directions(self, a: int, b: int, one_way: bool) -> list[Way]:
        """Return the directions of the link from a to b; ValueError if there is none."""
        self.check_host(a)
        self.check_host(b)
        if a == b:
            raise ValueError(f"there is no link from host {a} to itself")
        return [(a, b)] if one_way else [(a, b), (b, a)]

    def set_link(self, a: int, b: int, link: Link, one_way: bool = False) -> None:
        """Change the link between two hosts, or only its direction from a to b."""
        ways = self.directions(a, b, one_way)
        with self.lock:
            self.links.update(dict.fromkeys(ways, link))
            self.tell_links(ways)

    def set_links(self, link: Link) -> None:
        """Change all links."""
        for a in range(self.num_hosts):
            for b in range(a):
                self.set_link(a, b, link)

    def cut(self, a: int, b: int, one_way: bool = False) -> None:
        """Let no packet through from now on; those under way arrive."""
        ways = self.directions(a, b, one_way)
        with self.lock:
            self.cuts.update(ways)
            self.tell_links(ways)

    def mend(self, a: int, b: int, one_way: bool = False) -> None:
        ways = self.directions(a, b, one_way)
        with self.lock:
            self.cuts.difference_update(ways)
            self.tell_links(ways)

    def impair(self, ways: Sequence[Way], link: Link | None) -> Callable[[], None]:
        """Lay a worse link over some directions (None: cut); return what takes it away.

        Several may lie over one direction: the last one counts, and a cut always does.
        """
        over = Impairment(
            [way for a, b in ways for way in self.directions(a, b, True)], link
        )

        def mend() -> None:
            with self.lock:
                self.impairments = [each for each in self.impairments if each is not over]
                self.tell_links(over.ways)

        with self.lock:
            self.impairments.append(over)
            self.tell_links(over.ways)
        return mend

    def tell_links(self, ways: Sequence[Way]) -> None:
        changes = []
        for way in ways:
            over = [each.link for each in self.impairments if way in each.ways]
            link = [self.links[way], *filter(None, over)][-1]
            changes.append([*way, vars(link), way in self.cuts or None in over])
        self.tell("links", changes=changes)

    def set_rate(self, rate: float = math.inf) -> None:
        """Let each host send to all others together at this rate (bits a second)."""
        if not rate > 0:
            raise ValueError(f"rate {rate}: expected bits a second, above 0")
        self.tell("rate", rate=rate)

    def counters(self) -> dict[tuple[int, int], Counters]:
        """Return what became of the packets of each direction (sender, receiver)."""
        counted = self.tell("counters")["directions"]
        return {(a, b): Counters(**values) for a, b, values in counted}

    def lateness(self) -> float:
        """Return by how many seconds a packet was late at most, since this was asked."""
        return self.tell("lateness")["seconds"]


@contextlib.contextmanager
def network(
    num_hosts: int,
    link: Link | None = None,
    seed: int = 0,
    mtu: int = 1500,
    congestion: str = "",
) -> Iterator[Network]:
    """Join hosts by links, all alike at first; remove everything at the end.

    `mtu`: bytes of the largest packet. `congestion`: how TCP controls it, such as cubic;
    empty: as on this machine. ValueError for what cannot be, before anything is made.
    """
    check(num_hosts, seed, mtu)
    congestion = congestion or machine_congestion()
    check_congestion(congestion)
    with namespaces.hosts(num_hosts), forwarder(num_hosts, seed) as process:
        net = Network(num_hosts, process)
        net.answer()
        for host in range(num_hosts):
            connect(host, mtu, congestion)
        if link:
            net.set_links(link)
        yield net


def check(num_hosts: int, seed: int, mtu: int) -> None:
    if not 1 < num_hosts <= namespaces.MOST_HOSTS:
        raise ValueError(f"{num_hosts} hosts: expected 2 to {namespaces.MOST_HOSTS}")
    if not 0 <= seed < WORD:
        raise ValueError(f"seed {seed}: expected 0 to {WORD - 1}")
    if not MTUS[0] <= mtu <= MTUS[1]:
        raise ValueError(f"mtu {mtu}: expected {MTUS[0]} to {MTUS[1]} bytes")
    namespaces.require()


def check_congestion(congestion: str) -> None:
    """Raise ValueError for a control that a namespace may not use."""
    allowed = ALLOWED.read_text(encoding="utf-8").split()
    if congestion not in allowed:
        raise ValueError(
            f"congestion {congestion!r}: expected one of {', '.join(allowed)}, which "
            f"{ALLOWED} allows"
        )


def machine_congestion() -> str:
    """Return how TCP controls congestion on this machine, such as cubic."""
    return CONGESTION.read_text(encoding="utf-8").strip()


@contextlib.contextmanager
def forwarder(num_hosts: int, seed: int) -> Iterator[subprocess.Popen]:
    hosts = map(namespaces.name, range(num_hosts))
    process = subprocess.Popen(
        [sys.executable, "-c", START, str(seed), *hosts],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        yield process
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # which ends it
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def connect(host: int, mtu: int, congestion: str) -> None:
    """Give a host's interface its address and turn it on."""
    here, device = namespaces.name(host), ["dev", namespaces.INTERFACE]
    if congestion != machine_congestion():
        with namespaces.entered(here):
            CONGESTION.write_text(congestion, encoding="utf-8")
    namespaces.ip("-n", here, "address", "add", f"{namespaces.address(host)}/24", *device)
    limits = ["mtu", str(mtu), "txqueuelen", str(WAITING_PACKETS)]
    namespaces.ip("-n", here, "link", "set", *device, *limits, "addrgenmode", "none", "up")
