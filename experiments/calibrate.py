"""Measure this machine's constants for experiments.plan --hardware=this.

python -m experiments.calibrate [--out=hardware.json] [--processes=2] [--seconds=0.5]

Measures products of matrices by their width, the memory's bandwidth, the latency and the
bandwidth of each kind of collective, and steps of eight models. It takes about a minute on
CPUs; on an accelerator it takes minutes, most of them to compile. On CPUs the collectives
run between real processes (--processes), each on its own cores; on GPUs and TPUs between
the devices of this process. Writes a file of JSON; nothing else may run on the machine.
"""

import os
import pathlib
import subprocess
import sys
from functools import partial

from absl import flags

from experiments.planning.calibration import check_request, measure
from experiments.planning.hardware import FILE, shown, write_machine
from experiments.planning.steps import measure_steps
from experiments.processes import allocator, join
from experiments.processes.children import (
    GRACE_SECONDS,
    describe,
    end,
    free_port,
    settle,
    wait,
)
from experiments.processes.messages import is_main_process, user_errors
from experiments.run import startup

join.define_flags()
OUT = flags.DEFINE_string("out", FILE, "File to write.")
PROCESSES = flags.DEFINE_integer(
    "processes", 2, "On CPUs: processes that send to each other.", lower_bound=1
)
SECONDS = flags.DEFINE_float(
    "seconds", 0.5, "Seconds for each point that is measured.", lower_bound=0
)


def main() -> None:
    alone = flags.FLAGS.coordinator is None and flags.FLAGS.num_processes is None
    with user_errors():
        file = pathlib.Path(OUT.value)
        check_request(file, SECONDS.value)
        if not alone or PROCESSES.value == 1:
            join.start_jax()
        elif is_cpu():
            together(file)
            return
        else:
            join.start_jax()
    found = measure(SECONDS.value)
    found |= measure_steps(found, SECONDS.value)
    if is_main_process():
        with user_errors():
            write_machine(file, found)
        print(shown(found))


def is_cpu() -> bool:
    """Tell whether JAX will run on CPUs, without starting it: children are started here."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    there = allocator.has_accelerator(pathlib.Path("/dev"))
    return platforms == "cpu" or (not platforms and not there)


def together(file: pathlib.Path) -> None:
    """Run this command in several processes on this machine; ValueError if one fails."""
    number, address = PROCESSES.value, f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "experiments.calibrate", f"--out={file}",
                f"--seconds={SECONDS.value}", "--devices=1", f"--coordinator={address}",
                f"--num_processes={number}", f"--process_id={index}",
            ],
            stdout=None if index == 0 else subprocess.DEVNULL,
            preexec_fn=partial(settle, index, number),
        )
        for index in range(number)
    ]  # fmt: skip
    failed = wait(processes)
    end(processes, GRACE_SECONDS)
    if failed is not None:
        code = processes[failed].returncode
        raise ValueError(
            f"process {failed} of {number} {describe(code)}; its message stands above, or "
            "give --processes=1"
        )


if __name__ == "__main__":
    startup.run(main)
