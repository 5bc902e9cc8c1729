"""Network namespaces: hosts on one machine, each with interfaces of its own.

This needs Linux and root. JAX's CPU collectives (Gloo) bind to the address of the host's
name, so each namespace has its own /etc/hosts.

The names of namespaces hold the id of the process that made them. So several runs can share
a machine, and a run removes only its own namespaces and those of dead processes.
"""

import contextlib
import ctypes
import functools
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator

PREFIX = "lockstep"
INTERFACE = "link0"  # of every host, to all others
SUBNET = "10.77.0"
TUN = "/dev/net/tun"
MOST_HOSTS = 254
CLONE_NEWNET = 0x40000000


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=not check)


def name(host: int) -> str:
    return f"{PREFIX}-{os.getpid()}-{host}"


def address(index: int) -> str:
    return f"{SUBNET}.{index + 1}"


@functools.cache
def lacking() -> str:
    """Return what is needed here before hosts can be joined by links; empty: nothing."""
    if sys.platform != "linux":
        return "Linux"
    if os.geteuid() != 0:
        return "root"
    if not shutil.which("ip"):
        return "the command ip (of the package iproute2)"
    try:
        pathlib.Path(TUN).open("r+b", buffering=0).close()
    except OSError as error:
        return f"TUN devices; {TUN} cannot be opened: {error.strerror}"
    probe = name(MOST_HOSTS)
    made = subprocess.run(
        ["ip", "netns", "add", probe], capture_output=True, encoding="utf-8"
    )
    ip("netns", "delete", probe, check=False)
    if made.returncode:
        return f"the right to make network namespaces ({made.stderr.strip()})"
    return ""


def require() -> None:
    """Raise ValueError, which says what is needed, where hosts cannot be joined."""
    if lacking():
        raise ValueError(f"a network of one's own needs {lacking()}")


@contextlib.contextmanager
def hosts(num_hosts: int) -> Iterator[None]:
    """Make the namespaces of `num_hosts` hosts; remove them at the end."""
    remove()
    try:
        for index in range(num_hosts):
            add_host(index)
        yield
    finally:
        remove()


def add_host(index: int) -> None:
    here = name(index)
    ip("netns", "add", here)
    names = pathlib.Path("/etc/netns") / here / "hosts"
    names.parent.mkdir(parents=True, exist_ok=True)
    names.write_text(
        f"127.0.0.1 localhost\n{address(index)} {socket.gethostname()}\n", encoding="utf-8"
    )
    ip("-n", here, "link", "set", "lo", "up")


def remove(owner: int | None = None) -> None:
    """Remove the namespaces of a process (default: this one), and those of dead ones."""
    owner = owner or os.getpid()
    for folder in pathlib.Path("/etc/netns").glob(f"{PREFIX}-*"):
        if is_left(folder.name, owner):
            (folder / "hosts").unlink(missing_ok=True)
            folder.rmdir()
    for namespace in pathlib.Path("/run/netns").glob(f"{PREFIX}-*"):
        if is_left(namespace.name, owner):
            ip("netns", "delete", namespace.name, check=False)


def is_left(namespace: str, owner: int) -> bool:
    """Tell whether the owner or a dead process has made a namespace."""
    made = re.fullmatch(rf"{PREFIX}-(\d+)-\w+", namespace)
    if not made:
        return False
    return int(made[1]) == owner or not pathlib.Path(f"/proc/{made[1]}").exists()


def inside(index: int, command: list[str]) -> list[str]:
    """Return the command line that runs a command in a host's namespace."""
    return ["ip", "netns", "exec", name(index), *command]


@functools.cache
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def entered(namespace: str) -> Iterator[None]:
    """Let this thread be in a namespace: a socket made inside stays there for good."""
    with open("/proc/thread-self/ns/net", "rb") as home:
        with open(f"/run/netns/{namespace}", "rb") as there:
            enter(there.fileno())
        try:
            yield
        finally:
            enter(home.fileno())


def enter(file: int) -> None:
    if libc().setns(file, CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"no namespace can be entered: {os.strerror(code)}")
