"""Train with a parameter server on two machines of Ray, joined by a link of our own.

python -m experiments.studies.machines --config=configs/tiny.py --workdir=runs/machines \
    --config.steps=60 [--rtt=10 --rate=100]

Needs Linux, root and Ray. Each machine is a network namespace. One runs `ray start --head`
and the trainer, the other `ray start --address`, as on a cluster. The link's round trip is
in ms, its rate in Mbit/s. At the end the run is audited and replayed; the line that is
printed also says on how many machines workers and shards were, and how many bytes have
passed each way. The exit code is 1 if a number was lost or repeated, or the replay differs.
"""

import contextlib
import json
import math
import os
import pathlib
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial

from absl import flags

from experiments.processes import namespaces
from experiments.processes.children import die_with_parent, end
from experiments.processes.descendants import SERVER as SERVED
from experiments.processes.descendants import descendants
from experiments.processes.files import json_line
from experiments.processes.messages import user_errors
from experiments.processes.network.emulator import network
from experiments.processes.network.link import Link
from experiments.processes.ray_tasks import import_ray
from experiments.run import startup

CONFIG = startup.define_config()
WORKDIR = startup.define_workdir()
RTT = flags.DEFINE_float("rtt", 1.0, "Round trip between the machines, ms.", lower_bound=0)
RATE = flags.DEFINE_float(
    "rate", 0, "Rate of the link, Mbit/s; 0: as fast as this machine allows.", lower_bound=0
)
SERVER = {
    "strategy": "parameter_server", "data": 1, "server.mode": "async",
    "server.pool": "ray", "server.workers": 2, "server.shards": 2,
}  # fmt: skip
PORT, MACHINES = 6379, 2
READY_SECONDS = 120.0
END_SECONDS = 20.0
STORE_BYTES = 200 << 20


def environment(folder: str) -> dict[str, str]:
    """Return what the processes of the cluster share: a token of their own, no more."""
    return os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": folder,
    }


@contextlib.contextmanager
def cluster(shared: dict[str, str], folder: str) -> Iterator[list[subprocess.Popen]]:
    """Start Ray on both machines; ValueError, with what it said, if it does not start."""
    address = f"{namespaces.address(0)}:{PORT}"
    ray = [str(pathlib.Path(sys.executable).parent / "ray"), "start", "--block"]
    usual = ["--num-cpus=1", f"--object-store-memory={STORE_BYTES}"]
    how = [
        ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}"],
        [f"--address={address}"],
    ]
    nodes: list[subprocess.Popen] = []
    try:
        for host, more in enumerate(how):
            log = pathlib.Path(folder) / f"machine-{host}.log"
            at = [f"--node-ip-address={namespaces.address(host)}"]
            with log.open("wb") as out:
                command = namespaces.inside(host, [*ray, *more, *at, *usual])
                nodes.append(
                    subprocess.Popen(
                        command,
                        env=shared,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        preexec_fn=partial(die_with_parent, 15),
                    )  # fmt: skip
                )
            wait_until_ready(nodes[host], log)
        yield nodes
    finally:
        for node in nodes:
            node.terminate()
        end(nodes, END_SECONDS)


def wait_until_ready(node: subprocess.Popen, log: pathlib.Path) -> None:
    """Wait until `ray start` says that it has; ValueError if it ends or takes too long."""
    deadline = time.monotonic() + READY_SECONDS
    said = ""
    while "Ray runtime started" not in said:
        if node.poll() is not None or time.monotonic() > deadline:
            raise ValueError(f"ray start did not come up: {said[-500:].strip()}")
        time.sleep(0.2)
        said = log.read_text(encoding="utf-8", errors="replace")


class Seen(threading.Thread):
    """Looks now and then how many workers and shards each machine has."""

    def __init__(self, nodes: list[subprocess.Popen]):
        super().__init__(daemon=True)
        self.nodes, self.over = nodes, threading.Event()
        self.most = [dict.fromkeys(SERVED, 0) for _ in nodes]

    def run(self) -> None:
        while not self.over.wait(0.5):
            for node, most in zip(self.nodes, self.most, strict=True):
                for kind, title in SERVED.items():
                    most[kind] = max(most[kind], len(descendants(node.pid, title)))


def main() -> None:
    with user_errors():
        startup.load_config(CONFIG)
        folder = startup.workdir(WORKDIR)
        namespaces.require()
        import_ray()
    given = [a for a in sys.argv[1:] if a.startswith(("--config=", "--config."))]
    served = [f"--config.parallel.{name}={value}" for name, value in SERVER.items()]
    train = [sys.executable, "-m", "experiments.train", *given, *served, "--devices=1"]
    link = Link(delay=RTT.value / 2000, rate=RATE.value * 1e6 or math.inf)
    with tempfile.TemporaryDirectory(prefix="ray-") as held, user_errors(ValueError):
        shared = environment(held)
        with network(MACHINES, link) as net, cluster(shared, held) as nodes:
            seen = Seen(nodes)
            seen.start()
            shared["RAY_ADDRESS"] = f"{namespaces.address(0)}:{PORT}"
            began = time.perf_counter()
            command = namespaces.inside(0, [*train, f"--workdir={folder}"])
            code = subprocess.run(command, env=shared, stdout=sys.stderr).returncode
            seconds = time.perf_counter() - began
            seen.over.set()
            counted = net.counters()
        if code:
            raise SystemExit(code)
    audit = [sys.executable, "-m", "experiments.audit", f"--workdir={folder}", "--replay"]
    found = subprocess.run(audit, stdout=subprocess.PIPE, encoding="utf-8")
    line = {
        "rtt": RTT.value,
        "rate": RATE.value,
        "seconds": seconds,
        "machines": seen.most,
        "sent_bytes": [counted[0, 1].bytes, counted[1, 0].bytes],
        **json.loads(found.stdout or "{}"),
    }
    print(json_line(line), end="")
    sys.exit(found.returncode)


if __name__ == "__main__":
    startup.run(main)
