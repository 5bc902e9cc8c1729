"""Train in several processes on this machine, joined over loopback.

python -m experiments.launch --processes=2 --devices_per_process=4 -- \
    --config=configs/tiny.py --workdir=runs/two

On a TPU pod, SLURM, Kubernetes or MPI no launcher is needed: start experiments.train once
a process there, and JAX finds the others.
"""

import pathlib
import subprocess
import sys
import tempfile
from functools import partial

from absl import app, flags

from experiments.processes.children import (
    GRACE_SECONDS,
    describe,
    end,
    free_port,
    settle,
    wait,
)

PROCESSES = flags.DEFINE_integer("processes", 2, "How many.", lower_bound=1)
DEVICES = flags.DEFINE_integer(
    "devices_per_process", 1, "Emulated CPU devices of each.", lower_bound=1
)
CORES = flags.DEFINE_integer(
    "cores_per_process", 0, "CPU cores of each; 0: an equal share of all.", lower_bound=0
)
MODULE = flags.DEFINE_string("module", "experiments.train", "What each one runs.")


def start(index: int, port: int, arguments: list[str], output) -> subprocess.Popen:
    command = [
        *(sys.executable, "-m", MODULE.value, *arguments),
        f"--devices={DEVICES.value}",
        f"--coordinator=127.0.0.1:{port}",
        f"--num_processes={PROCESSES.value}",
        f"--process_id={index}",
    ]
    return subprocess.Popen(
        command,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        preexec_fn=partial(settle, index, PROCESSES.value, CORES.value)
        if sys.platform == "linux"
        else None,
    )


def main(argv: list[str]) -> None:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        # Process 0 speaks; what the others say is shown if they are the ones that fail.
        files = [pathlib.Path(folder) / f"{i}.log" for i in range(PROCESSES.value)]
        outputs = [None, *(file.open("wb") for file in files[1:])]
        processes = [start(i, port, argv[1:], out) for i, out in enumerate(outputs)]
        try:
            failed = wait(processes)
        except KeyboardInterrupt:
            end(processes, GRACE_SECONDS)
            raise SystemExit(130) from None
        if failed is None:
            return
        code = processes[failed].returncode
        end(processes, GRACE_SECONDS)
        if failed and processes[0].returncode != code:
            sys.stderr.write(
                files[failed].read_text(errors="replace", encoding="utf-8")[-3000:]
            )
        print(
            f"error: process {failed} of {PROCESSES.value} {describe(code)}; ended the "
            "others. The same command goes on from the last complete checkpoint",
            file=sys.stderr,
        )
        raise SystemExit(2 if code == 2 else 1)


if __name__ == "__main__":
    app.run(main)
