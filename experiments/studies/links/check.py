"""The emulated network against theory: round trips, rates, losses, its ceiling."""

import math
import statistics

from scipy.stats import binom

from experiments.processes.network.emulator import Network, network
from experiments.processes.network.link import Link
from experiments.processes.network.priority import first_of_all
from experiments.processes.network.probe import arrivals, round_trips, transfer
from experiments.sweeps.results import Line

RTTS = (0, 1, 2, 5, 10, 50, 150)  # milliseconds
RATES = (1, 10, 100)  # megabits a second
LOSSES = (0.1, 1, 10)  # percent
PINGS, RATE_SECONDS, DATAGRAMS = 40, 4, 20_000
PAYLOAD = 1472  # bytes that fill a packet of 1,500 behind the headers of IP and UDP
SHARE = 1448 / 1500  # of TCP's payload in a packet of 1,500 bytes
CEILING_BYTES = 200_000_000


def check_round_trips(net: Network) -> list[Line]:
    """Compare the median of some pings: within 5 % from 10 ms up, 0.5 ms below."""
    lines = []
    for rtt in RTTS:
        net.set_links(Link(delay=rtt / 2000))
        found = statistics.median(round_trips(0, 1, PINGS)) * 1000
        allowed = 0.05 * rtt if rtt >= 10 else 0.5
        lines.append(line("round trip, ms", rtt, found, abs(found - rtt) <= allowed))
    return lines


def check_rates(net: Network) -> list[Line]:
    """Compare the rate of a TCP connection: within 5 % of its payload's share."""
    lines = []
    for rate in RATES:
        net.set_links(Link(rate=rate * 1e6))
        num_bytes = int(rate * 1e6 / 8 * RATE_SECONDS * SHARE)
        seconds, _ = transfer(0, 1, bytes(num_bytes))
        found = num_bytes * 8 / seconds / 1e6 / SHARE
        lines.append(line("rate, Mbit/s", rate, found, abs(found / rate - 1) <= 0.05))
    return lines


def check_losses() -> list[Line]:
    """Count lost datagrams: inside the binomial's 99 %, the same ones in a second run."""
    lines = []
    for loss in LOSSES:
        runs = []
        for _ in range(2):
            with network(2, Link(loss=loss / 100), seed=1) as net:
                arrived = [number for number, _ in arrivals(0, 1, DATAGRAMS, PAYLOAD)]
                counted = net.counters()[0, 1]
                runs.append((arrived, counted))
        missing = DATAGRAMS - len(runs[0][0])
        low, high = binom.interval(0.99, DATAGRAMS, loss / 100)
        found = missing / DATAGRAMS * 100
        fits = low <= missing <= high and missing == runs[0][1].lost
        lines.append(line("loss, %", loss, found, bool(fits)))
        again = runs[0] == runs[1]
        share = 100.0 * again
        lines.append(line(f"same packets lost again, % ({loss} % lost)", 100, share, again))
    return lines


def check_ceiling() -> list[Line]:
    """Measure the rate of a TCP connection without any limit."""
    lines = []
    for mtu in (1500, 65_000):
        with network(2, mtu=mtu):
            seconds, _ = transfer(0, 1, bytes(CEILING_BYTES))
        found = CEILING_BYTES * 8 / seconds / 1e6
        lines.append(line(f"ceiling at an MTU of {mtu}, Mbit/s", math.inf, found, True))
    return lines


def line(what: str, ideal: float, found: float, fits: bool) -> Line:
    ideal_or_none = ideal if math.isfinite(ideal) else None
    return {"check": what, "ideal": ideal_or_none, "found": round(found, 4), "fits": fits}


def check_all() -> list[Line]:
    with first_of_all():  # a busy machine is not what is to be found
        with network(2) as net:
            lines = check_round_trips(net) + check_rates(net)
        return lines + check_losses() + check_ceiling()
