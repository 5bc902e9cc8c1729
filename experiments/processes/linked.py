"""Start link_worker in every namespace of a network, and take steps together."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from experiments.processes import namespaces
from experiments.processes.children import GRACE_SECONDS, end, settle

PORT = 7777  # process 0 listens here, in its own namespace


class Workers:
    """Processes that take steps together; RuntimeError if one has died."""

    def __init__(self, processes: list[subprocess.Popen]):
        self.processes = processes

    def read(self) -> list[dict[str, Any]]:
        return [self.answer(process) for process in self.processes]

    def answer(self, process: subprocess.Popen) -> dict[str, Any]:
        for line in process.stdout:
            if line.startswith("{"):  # Gloo also writes to standard output
                return json.loads(line)
        raise RuntimeError("a worker has ended; its own message stands above")

    def turn(self, num_steps: int) -> list[dict[str, Any]]:
        for process in self.processes:
            process.stdin.write(f"{num_steps}\n")
            process.stdin.flush()
        return self.read()


@contextlib.contextmanager
def workers(num_hosts: int, config_flags: list[str]) -> Iterator[tuple[Workers, float]]:
    """Yield the workers, and the ledger's bytes for each device and step."""
    processes = []
    try:
        for index in range(num_hosts):
            command = [
                *(sys.executable, "-m", "experiments.studies.link_worker", *config_flags),
                *("--devices=1", f"--coordinator={namespaces.address(0)}:{PORT}"),
                *(f"--num_processes={num_hosts}", f"--process_id={index}"),
            ]
            processes.append(
                subprocess.Popen(
                    namespaces.inside(index, command),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=None if index == 0 else subprocess.DEVNULL,
                    encoding="utf-8",
                    preexec_fn=partial(settle, index, num_hosts),
                )
            )
        started = Workers(processes)
        yield started, started.read()[0]["ledger_bytes"]
    finally:
        for process in processes:
            process.stdin.close()
        end(processes, GRACE_SECONDS)
