"""One direction of a link while it runs: when each packet arrives, if it does."""

import math
from dataclasses import dataclass

from experiments.processes.network.link import (
    CAUSES,
    Link,
    flipped,
    stream,
    swapped,
    uniform,
)


@dataclass
class Counters:
    """What one direction of a link did to the packets that were sent into it."""

    packets: int = 0
    bytes: int = 0
    cut: int = 0  # dropped, because the link was cut
    overflowed: int = 0  # dropped, because the queue was full
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    damaged: int = 0
    swapped: int = 0

    @property
    def dropped(self) -> int:
        return self.cut + self.overflowed + self.lost


class Transmitter:
    """Sends packets one after the other at a rate (bits a second), from a queue (bytes)."""

    def __init__(self, rate: float = math.inf, queue: float = math.inf):
        self.rate, self.queue = rate, queue
        self.free_at = 0.0  # when it has sent all that it has taken

    def send(self, num_bytes: int, now: float) -> float | None:
        """Return when the packet's last bit is sent; None if the queue is full.

        The packet that is being sent counts as in the queue.
        """
        start = max(now, self.free_at)
        waiting = (start - now) * self.rate / 8 if start > now else 0.0
        if waiting + num_bytes > self.queue:
            return None
        self.free_at = start + num_bytes * 8 / self.rate
        return self.free_at


class Direction:
    """The way from one host to another."""

    def __init__(self, seed: int, sender: int, receiver: int):
        self.keys = {cause: stream(seed, sender, receiver, cause) for cause in CAUSES}
        self.counters = Counters()
        self.transmitter = Transmitter()
        self.last_at = 0.0  # when the last packet that was not late arrives
        self.is_cut = False
        self.set(Link())

    def set(self, link: Link) -> None:
        """Change the link; packets that are under way arrive when they would have."""
        self.link = link
        self.transmitter.rate, self.transmitter.queue = link.rate, link.queue

    def happens(self, cause: str, n: int) -> bool:
        probability = getattr(self.link, cause)
        return probability > 0 and uniform(self.keys[cause], n) < probability

    def take(self, packet: bytes, now: float) -> list[tuple[float, bytes]]:
        """Return when the packet arrives, and as what; twice or never are possible."""
        counters = self.counters
        n = counters.packets
        counters.packets += 1
        counters.bytes += len(packet)
        if self.is_cut:
            counters.cut += 1
            return []
        sent = self.transmitter.send(len(packet), now)
        if sent is None:
            counters.overflowed += 1
            return []
        if self.happens("loss", n):  # a lost packet has taken its time on the link
            counters.lost += 1
            return []
        arrival = self.arrival(n, sent), self.spoilt(packet, n)
        if self.happens("duplicate", n):
            counters.duplicated += 1
            return [arrival, arrival]
        return [arrival]

    def arrival(self, n: int, sent: float) -> float:
        """Return when packet n arrives: after those before it, unless it is made late."""
        at = sent + self.link.delay
        if self.link.jitter:
            at += self.link.jitter * (2 * uniform(self.keys["jitter"], n) - 1)
        if self.happens("reorder", n):
            self.counters.reordered += 1
            return at + self.link.late
        self.last_at = max(self.last_at, at)
        return self.last_at

    def spoilt(self, packet: bytes, n: int) -> bytes:
        """Return the packet as it arrives."""
        for cause, change, name in [
            ("damage", flipped, "damaged"),
            ("swap", swapped, "swapped"),
        ]:
            if self.happens(cause, n):
                changed = change(packet, uniform(self.keys["place"], n))
                counted = getattr(self.counters, name) + (changed != packet)
                setattr(self.counters, name, counted)
                packet = changed
        return packet
