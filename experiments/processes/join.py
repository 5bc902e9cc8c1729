"""The devices of this process, and how it joins the others of a run."""

import contextlib
import importlib.util
import os
import pathlib
import socket
import sys
import traceback
from collections.abc import Iterator
from typing import NamedTuple

import jax
from absl import flags
from jax._src.clusters import ClusterEnv

from experiments.processes import allocator, programs
from experiments.processes.messages import say
from experiments.processes.network import orders
from experiments.processes.waiting import waiting

flags.disclaim_key_flags()  # --help then lists them as the command's own flags

# With JAX's default of 100 s, the death of a process is noticed late.
HEARTBEAT_SECONDS = 30

# Emulated devices are threads. XLA ends the process if one is 40 s late at a collective,
# which happens on a busy machine.
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
MOST_DEVICES = 4096  # emulated; each has threads of its own


class Group(NamedTuple):
    """The processes of a run."""

    coordinator: str  # host:port of process 0
    num_processes: int
    process_id: int  # this process


def define_flags() -> None:
    """Define the flags of devices and processes, which `start_jax` reads."""
    flags.DEFINE_integer(
        "devices",
        0,
        "CPU devices to emulate if there is no accelerator; 0: use one.",
        lower_bound=0,
        upper_bound=MOST_DEVICES,
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0. Not needed under SLURM, MPI, Kubernetes or on a TPU pod, "
        "where JAX finds the processes itself.",
    )
    flags.DEFINE_integer("num_processes", None, "Number of processes; with --coordinator.")
    flags.DEFINE_integer(
        "process_id", None, "Number of this process, from 0; with --coordinator."
    )
    flags.DEFINE_integer(
        "join_seconds", 300, "Seconds to wait for the other processes.", lower_bound=1
    )
    flags.DEFINE_enum(
        "allocator",
        "mimalloc",
        ["mimalloc", "system"],
        "Memory allocator of JAX on a CPU; mimalloc keeps freed memory, which is faster.",
    )
    flags.DEFINE_float(
        "preallocate",
        None,
        "Share of a GPU's memory that JAX takes at the start; 0: as it is needed, which "
        "may leave it in pieces. Without the flag, JAX takes 0.75.",
        lower_bound=0.0,
        upper_bound=1.0,
    )


def leave_libtpu() -> None:
    """Keep JAX from starting an installed libtpu where there is no TPU.

    Those who compile for absent TPUs have it (requirements-aot.txt). It would print errors
    about a TPU that it cannot find.
    """
    if jax.config.jax_platforms or importlib.util.find_spec("libtpu") is None:
        return
    if not allocator.has_accelerator(pathlib.Path("/dev")):
        jax.config.update("jax_platforms", "cpu")


def start_jax() -> None:
    """Set devices and the compilation cache; join the other processes if there are any.

    Raises ValueError for devices or processes that do not exist.
    """
    devices = flags.FLAGS.devices
    if devices:
        jax.config.update("jax_num_cpu_devices", devices)
        os.environ["XLA_FLAGS"] = f"{PATIENCE} {os.environ.get('XLA_FLAGS', '')}"
    if devices <= 1:
        # On one CPU device, two steps in flight are no faster but hold twice the buffers.
        # Other devices ignore this option.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    allocator.preallocate(flags.FLAGS.preallocate)
    programs.use_cache()
    leave_libtpu()
    if group := find_group():
        join(group)
    find_devices()
    if group and is_here(group) and jax.default_backend() == "cpu":
        programs.share_cache()
    if allocator.is_loaded():
        say("mimalloc keeps freed memory; --allocator=system switches it off")


def find_group() -> Group | None:
    """Return the group that the flags or a cluster name; None for a single process.

    Raises ValueError for flags that do not name a group.
    """
    given = flags.FLAGS
    told = given.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    with waiting("the cluster to name process 0", given.join_seconds, "see its logs"):
        coordinator, num_processes, process_id, _ = (
            ClusterEnv.auto_detect_unset_distributed_params(
                told, given.num_processes, given.process_id, None, None, given.join_seconds
            )
        )
    numbers = f"--num_processes={num_processes} --process_id={process_id}"
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise ValueError(f"{numbers} given without --coordinator=HOST:PORT")
        return None
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ValueError(
            f"--coordinator={coordinator}: expected HOST:PORT, as in 10.0.0.1:1234"
        )
    if num_processes is None or process_id is None:
        raise ValueError(
            f"--coordinator={coordinator} given, but {numbers}; give all three"
        )
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id={process_id}: with --num_processes={num_processes} it must be "
            f"from 0 to {num_processes - 1}"
        )
    return Group(coordinator, num_processes, process_id)


def join(group: Group) -> None:
    """Meet the other processes; ValueError if that cannot be."""
    host, _, port = group.coordinator.rpartition(":")
    host = host.strip("[]")  # an IPv6 address has brackets
    if flags.FLAGS.coordinator:  # on a cluster, a name may become known later
        check_name(host)
    if group.process_id == 0:
        check_port(int(port))
    reach_directly(host)
    seconds = flags.FLAGS.join_seconds
    with waiting(
        f"all {group.num_processes} processes, to meet process 0 at {group.coordinator} "
        f"(this is process {group.process_id})",
        seconds,
        "start the others too, or wait longer with --join_seconds",
    ):
        jax.distributed.initialize(
            *group,
            # JAX would abort with a stack trace, so it waits longer than we do.
            initialization_timeout=seconds + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )


def is_here(group: Group) -> bool:
    """Tell whether all processes are on this machine.

    They meet over loopback, or over links that the launcher emulates.
    """
    host = group.coordinator.rpartition(":")[0]
    over_loopback = host in ("127.0.0.1", "localhost", "[::1]")
    return group.num_processes > 1 and (over_loopback or orders.taken())


def check_name(host: str) -> None:
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"--coordinator: the name of the host {host!r} is not known here ({error}); "
            "give its address"
        ) from None


def check_port(port: int) -> None:
    """Raise ValueError if another program listens at the port of process 0."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ValueError(
                f"process 0 cannot listen at port {port} ({error.strerror}); another "
                "program has it, so give the coordinator another port"
            ) from None


def reach_directly(host: str) -> None:
    """Let gRPC reach the coordinator without the HTTP proxy of the environment.

    The proxy does not know the host, and gRPC would try again without a message.
    """
    listed = os.environ.get("no_grpc_proxy", os.environ.get("no_proxy", ""))
    os.environ["no_grpc_proxy"] = ",".join(filter(None, (listed, host)))
    jax.config.update("jax_check_proxy_envs", False)  # no warning: the proxy is not used


def find_devices() -> None:
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: no plugin for cuda
        platforms = jax.config.jax_platforms
        if not platforms:
            raise
        reason = str(error).partition("(set JAX_PLATFORMS")[0].strip() or "no plugin"
        raise ValueError(
            f"there is no device of JAX_PLATFORMS={platforms} here ({reason}); unset "
            "JAX_PLATFORMS, or install the JAX that has it"
        ) from None


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """End this process at once if what is inside fails, if it is one of several.

    At the usual exit JAX waits for the other processes, and they may wait for this one in
    a collective; the launcher would learn of the failure late, or of theirs first.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code if isinstance(error, SystemExit) else 1)


def use_eight_devices() -> None:
    """Emulate eight devices if there is no accelerator. Call before JAX is first used."""
    jax.config.update("jax_num_cpu_devices", 8)
