"""Links between real namespaces: times, rates and losses of sockets; bytes of a step."""

import itertools
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time

import pytest

from experiments.processes import namespaces
from experiments.processes.linked import workers
from experiments.processes.network import orders
from experiments.processes.network.changes import Change, check, played
from experiments.processes.network.emulator import network
from experiments.processes.network.link import Link, stream, uniform
from experiments.processes.network.probe import arrivals, pair, round_trips, transfer
from tests.experiments.runs import ROOT, run, small, write_corpus

needs_network = pytest.mark.skipif(
    bool(namespaces.lacking()), reason=f"needs {namespaces.lacking()}"
)
OVERHEAD = 1500 / 1448  # bytes of a packet over those of TCP's payload
SEED = 5


def numbers(count: int, silence: float = 0.3) -> list[int]:
    """Send datagrams from host 0 to host 1; return the numbers of those that arrive."""
    return [number for number, _ in arrivals(0, 1, count, silence=silence)]


def spacing(sender: int, receiver: int, count: int, num_bytes: int) -> float:
    """Return the seconds from one arrival to the next, the median."""
    at = [at for _, at in arrivals(sender, receiver, count, num_bytes)]
    return statistics.median(b - a for a, b in itertools.pairwise(at))


@needs_network
def test_sockets_meet_what_the_links_say():
    text = os.urandom(200_000)
    with network(3, seed=SEED) as net:
        for delay in (0, 0.004, 0.02):
            net.set_link(0, 1, Link(delay=delay))
            assert 0 < min(round_trips(0, 1, 10)) - 2 * delay < 5e-4
        net.set_link(1, 0, Link(), one_way=True)
        assert 0 < min(round_trips(0, 1, 5)) - 0.02 < 5e-4
        assert 0 < min(round_trips(2, 0, 5)) < 5e-4  # the other links are as before
        # TCP finds and repairs all of this; the counters say that it had to.
        net.set_link(0, 1, Link(loss=0.05, duplicate=0.1, reorder=0.1, damage=0.05))
        assert transfer(0, 1, text)[1] == text
        counted = net.counters()[0, 1]
        assert min(counted.lost, counted.duplicated, counted.reordered, counted.damaged) > 0
        net.set_link(0, 1, Link(swap=1), one_way=True)  # but of this TCP knows nothing
        arrived = transfer(0, 1, text)[1]
        assert len(arrived) == len(text) and arrived != text
        assert net.lateness() < 1


@needs_network
def test_the_rate_is_that_of_the_link_or_of_the_host():
    payload, count = 1222, 60  # 1250 bytes with the headers of IP and UDP
    with network(3) as net:
        net.set_link(0, 1, Link(rate=10e6))
        assert spacing(0, 1, count, payload) == pytest.approx(1e-3, rel=0.02)
        net.set_link(0, 1, Link(rate=10e6, queue=5 * 1250))
        few = len(arrivals(0, 1, count, payload))
        assert 5 <= few < 20 and net.counters()[0, 1].overflowed == count - few
        net.set_links(Link())
        net.set_rate(20e6)  # of each host to all others together
        assert spacing(0, 2, count, payload) == pytest.approx(0.5e-3, rel=0.02)
        net.set_rate()
        text = bytes(500_000)
        assert transfer(1, 2, text)[1] == text


@needs_network
def test_the_packets_that_are_lost_are_those_of_the_seed():
    lost = {n for n in range(1000) if uniform(stream(SEED, 0, 1, "loss"), n) < 0.1}
    for _ in range(2):
        with network(2, Link(loss=0.1), seed=SEED) as net:
            first = net.counters()[0, 1].packets
            assert first == 0
            assert numbers(1000) == [n for n in range(1000) if n not in lost]
            counted = net.counters()
            assert (counted[0, 1].packets, counted[0, 1].lost) == (1000, len(lost))
            assert counted[1, 0].packets == 0
    with network(2, Link(duplicate=1)):
        assert numbers(3) == [0, 0, 1, 1, 2, 2]


@needs_network
def test_a_link_is_cut_in_one_direction_or_both_and_mended():
    with network(3) as net:
        net.cut(0, 1, one_way=True)
        assert numbers(3) == []
        assert len(arrivals(1, 0, 3)) == 3
        net.cut(0, 1)
        assert arrivals(1, 0, 3) == []
        net.mend(0, 1, one_way=True)
        assert numbers(3) == [0, 1, 2]
        counted = net.counters()
        assert (counted[0, 1].cut, counted[1, 0].cut) == (3, 3)
        for wrong in [(0, 3), (-1, 0), (1, 1)]:
            with pytest.raises(ValueError, match="there is no"):
                net.cut(*wrong)
        with pytest.raises(ValueError, match="rate 0: expected bits a second, above 0"):
            net.set_rate(0)
        check_orders(net)
        net.process.kill()
        with pytest.raises(RuntimeError, match="has ended"):
            net.mend(0, 1)


def check_orders(net) -> None:
    """Processes worsen links for a time; what was below is there again afterwards."""
    net.set_link(1, 2, Link(delay=0.01))
    assert not orders.taken()
    with orders.obeying(net):
        orders.worsen([(1, 2), (2, 1)], Link(delay=0.03), 0)
        assert 0.06 < min(round_trips(1, 2, 2)) < 0.08
        orders.worsen([(1, 2)], None, 0.3)  # above the other
        assert len(arrivals(2, 1, 2, silence=0.1)) == 2 and not arrivals(1, 2, 2)
        net.set_link(1, 2, Link(delay=0.001))  # below
        assert 0.06 < min(round_trips(1, 2, 2)) < 0.08
        mend = net.impair([(1, 2), (2, 1)], Link())
        assert min(round_trips(1, 2, 2)) < 0.01
        mend()
        assert min(round_trips(1, 2, 2)) > 0.06
        with pytest.raises(ValueError, match="there is no host 7"):
            net.impair([(1, 7)], None)
    assert not orders.taken()


def test_impossible_networks_are_refused(monkeypatch):
    for given, said in [
        ({"num_hosts": 1}, "1 hosts: expected 2 to 254"),
        ({"num_hosts": 2, "seed": -1}, "seed -1: expected 0 to"),
        ({"num_hosts": 2, "mtu": 100}, "mtu 100: expected 576 to 65000"),
    ]:
        with pytest.raises(ValueError, match=said), network(**given):
            pass
    namespaces.lacking.cache_clear()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ValueError, match="own needs root"), network(2):
        pass
    namespaces.lacking.cache_clear()
    monkeypatch.undo()


@needs_network
def test_a_congestion_control_that_is_not_there_is_refused():
    with (
        pytest.raises(ValueError, match="congestion 'none': expected one of"),
        network(2, congestion="none"),
    ):
        pass
    with network(2, congestion="reno"), pair(0, 1, socket.SOCK_STREAM) as (one, _):
        assert one.getsockopt(socket.IPPROTO_TCP, 13, 8).startswith(b"reno")


def left(pid: int) -> list[str]:
    folders = [pathlib.Path("/run/netns"), pathlib.Path("/etc/netns")]
    return [p.name for f in folders for p in f.glob(f"{namespaces.PREFIX}-{pid}-*")]


@needs_network
def test_an_error_leaves_nothing():
    with pytest.raises(KeyboardInterrupt), network(3) as net:
        assert len(left(os.getpid())) == 3 + 3
        raise KeyboardInterrupt
    assert net.process.poll() is not None
    assert not left(os.getpid())


@needs_network
def test_a_killed_process_leaves_nothing_and_disturbs_no_other():
    code = (
        "import time; from experiments.processes.network.emulator import network\n"
        "with network(2) as net: print(net.process.pid, flush=True); time.sleep(60)"
    )
    others = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        forwarders = [int(other.stdout.readline()) for other in others]
        others[0].kill()
        others[0].wait()
        deadline = time.monotonic() + 10
        while pathlib.Path(f"/proc/{forwarders[0]}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert not left(others[0].pid)
        with network(2):
            assert len(left(others[1].pid)) == 2 + 2
        # If both are killed at once, the next network removes what they left.
        for pid in (forwarders[1], others[1].pid):
            os.kill(pid, 9)
        others[1].wait()
        assert left(others[1].pid)
        namespaces.remove()
        assert not left(others[1].pid)
    finally:
        for other in others:
            other.kill()
            other.wait()


@needs_network
def test_an_all_reduce_sends_what_the_ledger_says(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    write_corpus(tmp_path / "corpus")
    overrides = {
        "parallel.strategy": "shard_map",
        "model.width": 128,
        "optim.warmup_steps": 1,
    }
    with (
        network(2),
        workers(2, small(tmp_path, **overrides)) as (started, ledger_bytes),
    ):
        started.turn(2)
        idle = started.turn(0)[0]["sent"]  # in a second
        turn = started.turn(5)
    seconds = sum(turn[0]["seconds"]) + 0.2
    for host in turn:
        sent = (host["sent"] - idle * seconds) / 5
        assert 0.98 * ledger_bytes < sent < ledger_bytes * OVERHEAD * 1.02


def test_impossible_changes_are_refused():
    for made, said in [
        (None, "returns None; expected a list"),
        ([Link()], "is no Change of a Link"),
        ([Change(Link(), after=-1)], "after -1 is not a number of seconds"),
        ([Change(None, between=(1, 7))], r"no link between \(1, 7\); expected two of the"),
        ([Change(Link(), after="x")], "after 'x' is not a number of seconds"),
        ([Change(None, between=1)], "no link between 1; expected two of the"),
        ([Change(None, between=(0, 1, 0))], r"no link between \(0, 1, 0\)"),
        ([Change(None, between=(1, 1))], r"no link between \(1, 1\)"),
        ([Change(None, one_way=True)], "one_way needs `between`"),
    ]:
        with pytest.raises(ValueError, match=f"links.py: .*{said}"):
            check("links.py", made, 4)


@needs_network
def test_changes_are_made_when_their_time_comes(capfd):
    changes = [
        Change(Link(delay=0.004)),
        Change(None, between=(0, 1), one_way=True),
        Change(Link(), after=0.4, between=(0, 1)),
        Change(None, after=60),
    ]
    with network(3) as net, played(net, check("links.py", changes, 3)):
        assert numbers(2, silence=0.1) == [] and len(arrivals(1, 0, 2, silence=0.1)) == 2
        assert min(round_trips(1, 2, 3)) > 0.008
        deadline = time.monotonic() + 10
        while not numbers(2, silence=0.1):
            assert time.monotonic() < deadline
    said = capfd.readouterr().err
    assert "after 0 s, all links: delay 0.004\n" in said
    assert "the link 0 to 1: cut\n" in said
    assert "after 0.4 s, the link 0 and 1: as good as the machine allows\n" in said
    assert "60" not in said


@needs_network
def test_a_launcher_joins_its_processes_by_links(tmp_path):
    links = tmp_path / "links.py"
    module = "--module=tests.experiments.processes.hello_worker"
    head = (
        "from experiments.processes.network.changes import Change\n"
        "from experiments.processes.network.link import Link\n"
        "def get_links(): return "
    )
    for text, code, said in [
        ("[Change(Link(delay=0.01))]", 0, "after 0 s, all links: delay 0.01"),
        ("[Change(None, between=(0, 2))]", 2, "there is no link between (0, 2)"),
        ("[Change(Link(loss=2))]", 2, "line 3: ValueError: link: loss 2 is a probability"),
    ]:
        links.write_text(head + text)
        result = run("launch", f"--links={links}", module, check=False)
        assert result.returncode == code and said in result.stderr, result.stderr
    result = run("launch", f"--links={links}", "--processes=1", module, check=False)
    assert result.returncode == 2 and "--processes is 1" in result.stderr
