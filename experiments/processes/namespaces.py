"""Processes joined by links of a chosen rate: network namespaces on one machine.

This needs Linux and root. Each process has its own namespace with one interface. The
interface is one end of a veth pair; the other end is on a bridge in a further namespace. No
packet leaves these namespaces. `tc tbf` sets the rate at which an interface sends, and the
interface counts the bytes that it sent.

JAX's CPU collectives (Gloo) bind to the address of the host's name, so each namespace has
its own /etc/hosts.

The names of namespaces hold the id of the process that made them. So several runs can share
a machine, and a run removes only its own namespaces and those of dead processes.
"""

import contextlib
import os
import pathlib
import re
import socket
import subprocess
from collections.abc import Iterator

PREFIX = "lockstep"
INTERFACE = "link0"


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=not check)


def name(host: int | str) -> str:
    return f"{PREFIX}-{os.getpid()}-{host}"


def address(index: int) -> str:
    return f"10.77.0.{index + 1}"


def available() -> bool:
    """Tell whether namespaces can be made here."""
    if os.name != "posix" or os.geteuid() != 0:
        return False
    try:
        made = subprocess.run(["ip", "netns", "add", name("probe")], capture_output=True)
        ip("netns", "delete", name("probe"), check=False)
        return made.returncode == 0
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def network(num_hosts: int) -> Iterator[None]:
    """Make the namespaces and links of `num_hosts` hosts; remove them at the end."""
    remove()
    hub = name("hub")
    try:
        ip("netns", "add", hub)
        ip("-n", hub, "link", "add", "bridge0", "type", "bridge")
        ip("-n", hub, "link", "set", "bridge0", "up")
        for index in range(num_hosts):
            add_host(index)
        yield
    finally:
        remove()


def add_host(index: int) -> None:
    here, hub, port = name(index), name("hub"), f"port{index}"
    ip("netns", "add", here)
    hosts = pathlib.Path("/etc/netns") / here / "hosts"
    hosts.parent.mkdir(parents=True, exist_ok=True)
    hosts.write_text(
        f"127.0.0.1 localhost\n{address(index)} {socket.gethostname()}\n", encoding="utf-8"
    )
    ip("-n", here, "link", "add", INTERFACE, "type", "veth", "peer", port, "netns", hub)
    ip("-n", here, "address", "add", f"{address(index)}/24", "dev", INTERFACE)
    for namespace, device in [(here, "lo"), (here, INTERFACE), (hub, port)]:
        ip("-n", namespace, "link", "set", device, "up")
    ip("-n", hub, "link", "set", port, "master", "bridge0")


def remove() -> None:
    """Remove the namespaces of this process, and those that dead processes left."""
    for folder in pathlib.Path("/etc/netns").glob(f"{PREFIX}-*"):
        if is_ours(folder.name):
            (folder / "hosts").unlink(missing_ok=True)
            folder.rmdir()
    for namespace in pathlib.Path("/run/netns").glob(f"{PREFIX}-*"):
        if is_ours(namespace.name):
            ip("netns", "delete", namespace.name, check=False)


def is_ours(namespace: str) -> bool:
    """Tell whether this process or a dead one has made a namespace."""
    made = re.fullmatch(rf"{PREFIX}-(\d+)-\w+", namespace)
    if not made:
        return False
    return int(made[1]) == os.getpid() or not pathlib.Path(f"/proc/{made[1]}").exists()


def inside(index: int, command: list[str]) -> list[str]:
    """Return the command line that runs a command in a host's namespace."""
    return ["ip", "netns", "exec", name(index), *command]


def set_rate(num_hosts: int, megabits: float | None) -> None:
    """Let every host send at this rate (megabits a second; None: as fast as it can)."""
    for index in range(num_hosts):
        device = ["dev", INTERFACE, "root"]
        tc = ["tc", "-n", name(index), "qdisc"]
        if megabits is None:
            subprocess.run([*tc, "delete", *device], capture_output=True)
            continue
        # The burst is two milliseconds of traffic. On slow links it is only three packets,
        # because a small message within the burst would take no time.
        burst = max(int(megabits * 1e6 / 8 * 0.002), 5000)
        shape = ["tbf", "rate", f"{megabits}mbit", "burst", f"{burst}", "latency", "1s"]
        subprocess.run([*tc, "replace", *device, *shape], check=True)
