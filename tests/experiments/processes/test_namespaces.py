"""Bytes on a real interface: the counter, the rate, the cleaning up, the ledger."""

import os
import pathlib
import subprocess
import sys

import pytest

from experiments.processes import namespaces
from experiments.processes.linked import workers
from tests.experiments.runs import small, write_corpus

pytestmark = pytest.mark.skipif(
    not namespaces.available(), reason="network namespaces need Linux, root and ip"
)

SEND = """
import socket, sys, time
host, num_bytes = sys.argv[1], int(sys.argv[2])
if host == "serve":
    with socket.create_server(("0.0.0.0", 7000)) as server:
        print("ready", flush=True)
        peer, _ = server.accept()
        while peer.recv(1 << 20):
            pass
else:
    start = time.perf_counter()
    with socket.create_connection((host, 7000)) as peer:
        peer.sendall(bytes(num_bytes))
        peer.shutdown(socket.SHUT_WR)
        peer.recv(1)  # until the other has read everything
    print(time.perf_counter() - start)
"""


OVERHEAD = 1514 / 1448  # bytes of a packet on an interface over those of TCP's payload


def sent_bytes(index: int) -> int:
    """Read how many bytes the interface of a host has sent, headers included."""
    file = f"/sys/class/net/{namespaces.INTERFACE}/statistics/tx_bytes"
    command = namespaces.inside(index, ["cat", file])
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


def transfer(num_bytes: int) -> float:
    """Send bytes from host 0 to host 1; return the seconds until all are there."""
    command = [sys.executable, "-c", SEND]
    with subprocess.Popen(
        namespaces.inside(1, [*command, "serve", "0"]), stdout=subprocess.PIPE, text=True
    ) as server:
        server.stdout.readline()
        sent = subprocess.run(
            namespaces.inside(0, [*command, namespaces.address(1), str(num_bytes)]),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    return float(sent.stdout)


@pytest.mark.parametrize("megabits, num_bytes", [(1000, 50_000_000), (10, 2_000_000)])
def test_the_counter_and_the_rate(megabits, num_bytes):
    with namespaces.network(2):
        namespaces.set_rate(2, megabits)
        before = sent_bytes(0)
        seconds = transfer(num_bytes)
        sent = sent_bytes(0) - before
    # Packets hold at most 1448 bytes and may hold less; segments are counted whole.
    assert num_bytes < sent < num_bytes * OVERHEAD * 1.02
    fastest = (num_bytes - (1 << 18)) * 8 / (megabits * 1e6)  # but for the first burst
    assert fastest < seconds
    if megabits < 100:  # on a busy machine a fast link is not what limits
        assert seconds < 1.5 * num_bytes * 8 / (megabits * 1e6)


def left(pid: int) -> list[str]:
    folders = [pathlib.Path("/run/netns"), pathlib.Path("/etc/netns")]
    return [p.name for f in folders for p in f.glob(f"{namespaces.PREFIX}-{pid}-*")]


def test_an_error_leaves_nothing():
    with pytest.raises(KeyboardInterrupt), namespaces.network(3):
        assert len(left(os.getpid())) == 3 + 1 + 3
        raise KeyboardInterrupt
    assert not left(os.getpid())


def test_the_next_run_removes_what_a_killed_one_left_and_nothing_of_a_living_one():
    code = (
        "import time; from experiments.processes import namespaces as n\n"
        "with n.network(2): print('made', flush=True); time.sleep(60)"
    )
    others = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for other in others:
            assert other.stdout.readline() == "made\n"
        others[0].kill()
        others[0].wait()
        assert left(others[0].pid) and left(others[1].pid)
        with namespaces.network(2):
            assert not left(others[0].pid)
            assert len(left(others[1].pid)) == 2 + 1 + 2
    finally:
        for other in others:
            other.kill()
            other.wait()
        namespaces.remove()
    assert not left(others[1].pid)


def test_an_all_reduce_sends_what_the_ledger_says(tmp_path, monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parents[3])
    write_corpus(tmp_path / "corpus")
    overrides = {
        "parallel.strategy": "shard_map",
        "model.width": 128,
        "optim.warmup_steps": 1,
    }
    with (
        namespaces.network(2),
        workers(2, small(tmp_path, **overrides)) as (started, ledger_bytes),
    ):
        started.turn(2)
        idle = started.turn(0)[0]["sent"]  # in a second
        turn = started.turn(5)
    seconds = sum(turn[0]["seconds"]) + 0.2
    for host in turn:
        sent = (host["sent"] - idle * seconds) / 5
        assert 0.98 * ledger_bytes < sent < ledger_bytes * OVERHEAD * 1.02
