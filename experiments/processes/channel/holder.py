"""Holds copies of what other processes have in memory, while these die and come back.

It is started by a launcher, one on each host, and holds what the processes of another host
send: for each process the newest few. Each message is a frame with a checksum, and what
lies here is compared with its checksum again before it is given back.
"""

import contextlib
import json
import os
import pathlib
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import google_crc32c

from experiments.processes.channel.frames import Address, DamagedFrame, receive, send
from experiments.processes.children import die_with_parent

NAME = "LOCKSTEP_COPIES"  # in the environment: steps between copies, where holders are
ROOT = pathlib.Path(__file__).parents[3]
# Not `python -m`: that would start the process again under JAX's allocator.
START = "from experiments.processes.channel.holder import main; main()"
KEPT = 3  # copies of each process; all have the same steps, but for those that died


class Copies:
    """The newest copies of each process: {process: {step: (checksum, bytes)}}."""

    def __init__(self):
        self.held: dict[int, dict[int, tuple[int, bytes]]] = {}
        self.lock = threading.Lock()

    def put(self, process: int, step: int, payload: bytes) -> None:
        with self.lock:
            mine = self.held.setdefault(process, {})
            # Later ones are of a state that was lost: the run went back to before them.
            kept = sorted(other for other in mine if other < step)[1 - KEPT :]
            entry = google_crc32c.value(payload), payload
            self.held[process] = {other: mine[other] for other in kept} | {step: entry}

    def steps(self, process: int) -> list[int]:
        with self.lock:
            return sorted(self.held.get(process, {}))

    def get(self, process: int, step: int) -> bytes | None:
        """Return a copy; None if there is none, or its bits are no longer those sent."""
        with self.lock:
            crc, payload = self.held.get(process, {}).get(step, (0, None))
            if payload is None or google_crc32c.value(payload) != crc:
                return None
            return payload


def answer(copies: Copies, question: dict, payload: bytes) -> tuple[object, bytes]:
    process = question["process"]
    match question["do"]:
        case "put":
            copies.put(process, question["step"], payload)
            return True, b""
        case "steps":
            return copies.steps(process), b""
        case "get":
            found = copies.get(process, question["step"])
            return found is not None, found or b""
    raise ValueError(f"unknown question {question}")


def server(host: str, port: int) -> socketserver.ThreadingTCPServer:
    """Listen at an address; `serve_forever` answers."""
    copies = Copies()

    class Question(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            # A broken connection is the other side's to begin again.
            with contextlib.suppress(OSError):
                try:
                    asked = json.loads(receive(self.request))
                    payload = receive(self.request)
                except DamagedFrame as error:
                    print(
                        f"warning: {error}; it is sent again", file=sys.stderr, flush=True
                    )
                    return
                told, found = answer(copies, asked, payload)
                send(self.request, json.dumps(told).encode())
                send(self.request, found)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address, daemon_threads = True, True

    return Server((host, port), Question)


def main() -> None:
    """Serve; argv is the host and the port."""
    with server(sys.argv[1], int(sys.argv[2])) as serving:
        serving.serve_forever()


@contextlib.contextmanager
def holding(
    every: int,
    addresses: list[Address],
    inside: Callable[[int, list[str]], list[str]],
) -> Iterator[None]:
    """Let a holder run on each host; processes started meanwhile send a copy each `every`.

    `inside` makes the command line that runs another one on a host.
    """
    processes = []
    try:
        for index, (host, port) in enumerate(addresses):
            command = [sys.executable, "-c", START, host, str(port)]
            processes.append(
                subprocess.Popen(
                    inside(index, command),
                    cwd=ROOT,
                    preexec_fn=lambda: die_with_parent(signal.SIGKILL),
                )
            )
        os.environ[NAME] = json.dumps([every, addresses])
        yield
    finally:
        os.environ.pop(NAME, None)
        for process in processes:
            process.kill()
            process.wait()
