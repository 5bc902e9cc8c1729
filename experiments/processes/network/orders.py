"""How a process of a run worsens a link: it asks its launcher, which holds the links.

The launcher listens at a Unix socket and hands its path on in the environment. A path is
the same in every network namespace, and no cut link stops what passes there.
"""

import contextlib
import json
import os
import pathlib
import socket
import socketserver
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence

from experiments.processes.network.emulator import Network, Way
from experiments.processes.network.link import Link

NAME = "LOCKSTEP_LINKS"
SECONDS = 10.0  # a launcher that lives answers at once


@contextlib.contextmanager
def obeying(net: Network) -> Iterator[None]:
    """Do what processes ask that are started from here while the block lasts."""
    timers: list[threading.Timer] = []

    class Order(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            order = json.loads(self.rfile.readline())
            link, seconds = order["link"], order["seconds"]
            mend = net.impair(order["ways"], None if link is None else Link(**link))
            if seconds:
                timers.append(threading.Timer(seconds, mend))
                timers[-1].daemon = True
                timers[-1].start()
            print(told(**order), file=sys.stderr, flush=True)
            self.wfile.write(b"\n")

    with tempfile.TemporaryDirectory() as folder:
        os.environ[NAME] = str(pathlib.Path(folder) / "links")
        with socketserver.ThreadingUnixStreamServer(os.environ[NAME], Order) as server:
            threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
            try:
                yield
            finally:
                del os.environ[NAME]
                server.shutdown()
                for timer in timers:
                    timer.cancel()


def told(ways: list[list[int]], link: dict[str, float] | None, seconds: float) -> str:
    links = ", ".join(f"{a} to {b}" for a, b in ways)
    what = "cut" if link is None else ", ".join(f"{n} {x:g}" for n, x in link.items())
    return f"links {links}: {what}" + (f" for {seconds:g} s" if seconds else "")


def taken() -> bool:
    """Tell whether a launcher holds the links of this process."""
    return NAME in os.environ


def worsen(ways: Sequence[Way], link: Link | None, seconds: float) -> None:
    """Let directions be like this link for some seconds; None: cut; 0: for good."""
    order = {"ways": ways, "link": link and link.told(), "seconds": seconds}
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(SECONDS)
        stream.connect(os.environ[NAME])
        stream.sendall(json.dumps(order).encode() + b"\n")
        stream.recv(1)  # it is done
