"""The process between the hosts: takes each packet from one TUN and gives it to another.

It runs by itself, so that the hosts' work does not delay packets, and before all other
processes (SCHED_FIFO), because a wire does not wait for a core. Its orders are lines of
JSON on standard input; each gets one line of JSON as its answer. It ends when standard
input does or when its parent is dead, and then removes the parent's namespaces.
"""

import dataclasses
import fcntl
import gc
import heapq
import json
import os
import select
import signal
import struct
import sys
import time
from typing import Any

from experiments.processes import namespaces
from experiments.processes.network.direction import Direction, Transmitter
from experiments.processes.network.link import Link
from experiments.processes.network.priority import first_of_all

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
LONGEST = 1 << 16  # bytes of a packet
BURST = 64  # packets to take from one host before the others have their turn
LOOK_SECONDS = 1.0  # how often to look whether the parent lives
SUBNET = bytes(map(int, namespaces.SUBNET.split(".")))


def open_tun(namespace: str) -> int:
    """Make the interface of a host; it is gone when the file is closed."""
    name = namespaces.INTERFACE.encode()
    with namespaces.entered(namespace), open(namespaces.TUN, "r+b", buffering=0) as file:
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name, IFF_TUN | IFF_NO_PI))
        tun = os.dup(file.fileno())
    os.set_blocking(tun, False)
    return tun


class Forwarder:
    def __init__(self, hosts: list[str], seed: int):
        self.tuns = [open_tun(namespace) for namespace in hosts]
        self.interfaces = [Transmitter() for _ in hosts]
        numbers = range(len(hosts))
        self.directions = {
            (a, b): Direction(seed, a, b) for a in numbers for b in numbers if a != b
        }
        self.waiting: list[tuple[float, int, int, bytes]] = []  # a heap, by arrival
        self.num_taken = 0
        self.latest = 0.0  # most seconds by which a packet was passed on too late

    def run(self) -> None:
        orders, parent = b"", os.getppid()
        while os.getppid() == parent:
            wait = self.waiting[0][0] - time.monotonic() if self.waiting else LOOK_SECONDS
            timeout = min(max(wait, 0.0), LOOK_SECONDS)
            ready, _, _ = select.select([*self.tuns, 0], [], [], timeout)
            for host, tun in enumerate(self.tuns):
                if tun in ready:
                    self.take(host, tun)
            self.deliver()
            if 0 in ready:
                more = os.read(0, LONGEST)
                if not more:
                    return
                *lines, orders = (orders + more).split(b"\n")
                for line in lines:
                    print(json.dumps(self.obey(json.loads(line))), flush=True)

    def take(self, host: int, tun: int) -> None:
        for _ in range(BURST):
            try:
                packet = os.read(tun, LONGEST)
            except BlockingIOError:
                return
            # Only IPv4 between the hosts; the kernel also sends multicasts.
            if packet[0] >> 4 != 4 or packet[16:19] != SUBNET:
                continue
            receiver = packet[19] - 1
            direction = self.directions.get((host, receiver))
            if direction is None:
                continue
            # The queue of a host has no end, so it drops nothing.
            sent = self.interfaces[host].send(len(packet), time.monotonic())
            for arrival, changed in direction.take(packet, sent):
                self.num_taken += 1  # keeps packets of one instant in order
                event = (arrival, self.num_taken, self.tuns[receiver], changed)
                heapq.heappush(self.waiting, event)

    def deliver(self) -> None:
        """Pass on what has arrived by now."""
        now = time.monotonic()
        while self.waiting and self.waiting[0][0] <= now:
            arrival, _, tun, packet = heapq.heappop(self.waiting)
            os.write(tun, packet)
            self.latest = max(self.latest, now - arrival)

    def obey(self, order: dict[str, Any]) -> Any:
        match order["order"]:
            case "links":
                for a, b, link, is_cut in order["changes"]:
                    self.directions[a, b].set(Link(**link))
                    self.directions[a, b].is_cut = is_cut
            case "rate":
                for interface in self.interfaces:
                    interface.rate = order["rate"]
            case "lateness":
                latest, self.latest = self.latest, 0.0
                return {"seconds": latest}
            case "counters":
                return {
                    "directions": [
                        [*pair, dataclasses.asdict(direction.counters)]
                        for pair, direction in self.directions.items()
                    ]
                }
        return {}


def main() -> None:
    """Serve the network of the parent process; argv is the seed, then its namespaces."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a Ctrl-C, the parent decides
    seed, *hosts = sys.argv[1:]
    parent = os.getppid()
    forwarder = Forwarder(hosts, int(seed))
    print(json.dumps({}), flush=True)
    try:
        with first_of_all():
            gc.disable()  # nothing here makes cycles
            forwarder.run()
    finally:
        namespaces.remove(parent)
