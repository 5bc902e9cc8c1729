"""Absent devices: the real compiler for TPUs, on a machine that has none.

JAX compiles for a TPU with libtpu, the library that also drives TPUs. Compiling needs no
TPU, only the topology's name. But a failed check inside libtpu ends the process, with a
stack of C++ functions and no exception. So a command that is given --topology starts itself
again in a child process, and says in one line how the child ended.
"""

import contextlib
import importlib.metadata
import math
import os
import pathlib
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial

import jax
from absl import flags
from jax.experimental.topologies import get_topology_desc

from experiments.processes.children import describe, die_with_parent

flags.disclaim_key_flags()  # --help then lists them as the command's own flags

CHILD = "LOCKSTEP_TOPOLOGY"  # in the child's environment: the topology
# Names that libtpu may know. It has no list of its own, so each is tried.
GENERATIONS = ("v2", "v3", "v4", "v4i", "v5e", "v5p", "v6e", "tpu7x")
EXAMPLES = "such as tpu-v5e:2x4 or tpu-v5p:2x2x2"
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # a TPU that is here stays free, and takes no lock
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several children at once
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # it would hold programs that nothing can run
    # Without a TPU, libtpu would ask the cloud's servers what it runs on, and complain.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
}


def define_flag() -> flags.FlagHolder:
    return flags.DEFINE_string(
        "topology",
        None,
        f"Compile for absent TPUs, {EXAMPLES}, and run nothing; needs "
        "requirements-aot.txt.",
    )


def absent_devices(topology: str, about: str) -> list[jax.Device]:
    """Return the devices of a topology, in a child process that this function starts.

    In the parent it does not return: it ends the process as the child ended. `about` says
    what is compiled, for the message if the compiler aborts. Raises ValueError for a
    topology that does not exist, and if libtpu is missing or does not suit JAX.
    """
    name = topology_name(topology)
    if os.environ.get(CHILD) == topology:
        return described(name)
    check_machine(sys.platform, platform.machine())
    check_libtpu()
    sys.exit(run_child(topology, about))


def run_child(topology: str, about: str) -> int:
    """Run this command again, with libtpu; return the exit code, or raise ValueError."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as messages:
        code = subprocess.run(
            [sys.executable, *sys.orig_argv[1:]],
            env=os.environ | ENVIRONMENT | {CHILD: topology},
            stderr=messages,
            preexec_fn=partial(die_with_parent, signal.SIGKILL),
        ).returncode
        messages.seek(0)
        text = messages.read()
    if code < 0:
        raise ValueError(
            f"the TPU compiler aborted on {about}: {failed_check(text) or describe(code)}"
        )
    print(text, end="", file=sys.stderr)
    return code


@contextlib.contextmanager
def compiler_errors(about: str) -> Iterator[None]:
    """End the process with one line if the program is too large for the devices."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).partition("RESOURCE_EXHAUSTED: ")[2].splitlines()[0]
        print(f"error: {about} does not fit: {reason}", file=sys.stderr, flush=True)
        sys.exit(2)


def failed_check(text: str) -> str:
    """Return the line of a failed check, without its place in the log; "" if none."""
    found = re.search(r"^F\d{4} \S+ +\d+ (\S+\] .*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def topology_name(topology: str) -> str:
    """Return libtpu's name, v5e:2x4, of tpu-v5e:2x4."""
    found = re.fullmatch(r"tpu-(\w+:\d+(x\d+){0,2})", topology)
    if not found:
        raise ValueError(f"--topology={topology}: expected tpu-GENERATION:SIZE, {EXAMPLES}")
    return found[1]


def described(name: str) -> list[jax.Device]:
    """Return the devices of a topology; ValueError if libtpu does not know it."""
    generation, _, layout = name.partition(":")
    one_chip = math.prod(map(int, layout.split("x"))) == 1
    hosts = {"chips_per_host_bounds": (1, 1, 1)} if one_chip else {}
    try:
        return get_topology_desc(name, "tpu", **hosts).devices
    except RuntimeError as error:
        reason = str(error).partition("INVALID_ARGUMENT: ")[2] or str(error)
    if not is_known(generation):
        known = ", ".join(filter(is_known, GENERATIONS))
        reason = f"libtpu knows no generation {generation!r}, but {known}"
    raise ValueError(f"--topology=tpu-{name}: {reason}; give another") from None


def is_known(generation: str) -> bool:
    try:
        get_topology_desc(f"{generation}:2x2x1", "tpu")
    except RuntimeError as error:
        return "Invalid TPU external name" not in str(error)
    return True


def check_machine(system: str, machine: str) -> None:
    if (system, machine) != ("linux", "x86_64"):
        raise ValueError(
            f"--topology needs libtpu, which exists for linux on x86_64, and this is "
            f"{system} on {machine}; compile in Colab or on such a machine"
        )


def check_libtpu() -> None:
    """Raise ValueError if libtpu is missing, or not the one that this JAX asks for."""
    wanted, found = wanted_libtpu(), found_libtpu()
    versions = f"JAX {jax.__version__} needs libtpu {wanted}"
    if found is None:
        raise ValueError(
            f"--topology: {versions}, and there is none; "
            "pip install -r requirements-aot.txt"
        )
    if found and not (found + ".").startswith(wanted.rstrip("*")):
        raise ValueError(
            f"--topology: {versions}, but {found} is installed; "
            f"pip install 'libtpu=={wanted}'"
        )


def wanted_libtpu() -> str:
    """Return the version that the extra jax[tpu] asks for, such as 0.0.42.*"""
    texts = importlib.metadata.requires("jax") or []
    matches = (re.match(r"libtpu==([\d.]+\*?)", text) for text in texts)
    return next(match[1] for match in matches if match)


def found_libtpu() -> str | None:
    """Return the version of the libtpu that JAX will load; None: there is none.

    A library that TPU_LIBRARY_PATH names may have no version beside it, "".
    """
    path = os.environ.get("TPU_LIBRARY_PATH")
    if path and not os.path.isfile(path):
        raise ValueError(f"--topology: TPU_LIBRARY_PATH={path} is not a file; unset it")
    where = {"path": [str(pathlib.Path(path).parents[1])]} if path else {}
    found = next(iter(importlib.metadata.distributions(name="libtpu", **where)), None)
    return found.version if found else ("" if path else None)
