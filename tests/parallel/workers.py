"""Two real processes that compute together, each from a module of the tests."""

import os
import subprocess
import sys

from experiments.processes.children import free_port
from tests.experiments.runs import ROOT


def run_two(module: str, *arguments: str) -> list[str]:
    """Run `module PORT INDEX ...` in two processes at once; return what they print."""
    port = free_port()
    (file,) = (ROOT / "tests").rglob(f"{module}.py")
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", name, str(port), str(index), *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    return [output for output, _ in outputs]
