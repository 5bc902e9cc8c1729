"""What a link does to packets: SplitMix64's published numbers, closed forms, checksums."""

import math
import struct

import pytest
from scipy.stats import binom, kstest

from experiments.processes.network.direction import Direction
from experiments.processes.network.link import (
    CAUSES,
    Link,
    flipped,
    number,
    stream,
    swapped,
    uniform,
)


def packet(payload: bytes, protocol: int = 6) -> bytes:
    """Make an IPv4 packet of TCP or UDP with the right checksum of its segment."""
    header = struct.pack("!HHIIBBHHH", 1, 2, 3, 4, 5 << 4, 16, 99, 0, 0)
    if protocol == 17:
        header = struct.pack("!HHHH", 1, 2, 8 + len(payload), 0)
    at = 16 if protocol == 6 else 6
    size = 20 + len(header) + len(payload)
    front = struct.pack("!BBHHHBBH", 0x45, 0, size, 0, 0, 64, protocol, 0)
    front += bytes([10, 77, 0, 1, 10, 77, 0, 2])
    segment = header + payload
    right = checksum(front, segment)
    return front + segment[:at] + struct.pack("!H", right) + segment[at + 2 :]


def checksum(front: bytes, segment: bytes) -> int:
    """Compute TCP's or UDP's checksum as RFC 1071 words it; 0 if the stored one fits."""
    pseudo = front[12:20] + bytes([0, front[9]]) + struct.pack("!H", len(segment))
    text = pseudo + segment + bytes(len(segment) % 2)
    total = sum(struct.unpack(f"!{len(text) // 2}H", text))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def fits(packet: bytes) -> bool:
    return checksum(packet[:20], packet[20:]) == 0


def direction(link: Link, seed: int = 0, sender: int = 0, receiver: int = 1) -> Direction:
    made = Direction(seed, sender, receiver)
    made.set(link)
    return made


def test_the_numbers_are_those_of_splitmix64():
    published = [
        6457827717110365317, 3203168211198807973, 9817491932198370423,
        4593380528125082431, 16408922859458223821,
    ]  # fmt: skip  # of seed 1234567, as in the test of java.util.SplittableRandom's ports
    assert [number(1234567, n) for n in range(1, 6)] == published
    keys = {
        stream(s, a, b, c) for s in (0, 7) for a in (0, 1) for b in (2, 3) for c in CAUSES
    }
    assert len(keys) == 2 * 2 * 2 * len(CAUSES)
    drawn = [uniform(stream(0, 0, 1, "loss"), n) for n in range(20_000)]
    assert kstest(drawn, "uniform").pvalue > 0.001


def test_decisions_are_those_of_seed_direction_cause_and_number():
    def lost(probability=0.1, **which):
        taken = direction(Link(loss=probability), **which)
        return [n for n in range(5000) if not taken.take(bytes(100), n * 1e-3)]

    first = lost()
    assert first == lost()
    assert set(lost(probability=0.05)) < set(first)  # less loss takes no new packet
    for other in (lost(seed=1), lost(sender=2), lost(receiver=2)):
        # Independent decisions meet as often as chance says.
        low, high = binom.interval(0.9999, 5000, 0.01)
        assert low <= len(set(first) & set(other)) <= high
    # Another cause and other times change no decision about loss.
    busy = direction(Link(delay=1, jitter=0.5, loss=0.1, reorder=0.5, damage=0.5))
    assert first == [n for n in range(5000) if not busy.take(packet(b"text"), n * 7.0)]


def test_shares_are_binomial():
    trials, text = 4000, packet(b"abcdef")
    for cause, counter in [
        ("loss", "lost"), ("duplicate", "duplicated"), ("reorder", "reordered"),
        ("damage", "damaged"), ("swap", "swapped"),
    ]:  # fmt: skip
        for share in (0.01, 0.3):
            taken = direction(Link(**{cause: share}))
            arrived = sum(len(taken.take(text, n)) for n in range(trials))
            count = getattr(taken.counters, counter)
            low, high = binom.interval(0.99, trials, share)
            assert low <= count <= high, (cause, share)
            more = {"loss": -count, "duplicate": count}.get(cause, 0)
            assert arrived == trials + more
        # 0 and 1 are never and always.
        always = direction(Link(**{cause: 1}))
        [always.take(text, 0.0) for _ in range(100)]
        assert getattr(always.counters, counter) == 100


def test_delay_and_rate_have_their_closed_form():
    taken = direction(Link(delay=0.02, rate=1e6))
    # Each packet of 125 bytes takes a millisecond, behind those before it.
    for k in range(1, 50):
        ((at, _),) = taken.take(bytes(125), 5.0)
        assert at == pytest.approx(5 + k * 1e-3 + 0.02)
    ((at, _),) = taken.take(bytes(125), 6.0)  # it has been idle since
    assert at == pytest.approx(6 + 1e-3 + 0.02)
    taken.set(Link(delay=0.001))
    ((at, _),) = taken.take(bytes(125), 6.01)  # overtakes none that is under way
    assert at == pytest.approx(6 + 1e-3 + 0.02)
    ((at, _),) = taken.take(bytes(125), 7.0)
    assert at == pytest.approx(7.001)


def test_a_full_queue_drops_the_last_packets():
    taken = direction(Link(rate=1e6, queue=1000))
    arrived = [bool(taken.take(bytes(125), 0.0)) for _ in range(20)]
    assert arrived == [True] * 8 + [False] * 12
    assert taken.counters.overflowed == 12
    # After 2.5 ms, 2.5 packets are sent, so there is room for two more.
    assert [bool(taken.take(bytes(125), 2.5e-3)) for _ in range(4)] == [1, 1, 0, 0]
    # Twice the load for a second: half is dropped.
    flood = direction(Link(rate=1e6, queue=2500))
    passed = sum(bool(flood.take(bytes(125), n * 0.5e-3)) for n in range(2000))
    assert passed == pytest.approx(1000, abs=20)


def test_jitter_keeps_the_order_and_reordering_does_not():
    taken = direction(Link(delay=0.05, jitter=0.02))
    ways = [taken.take(b"", 0.1 * n)[0][0] - 0.1 * n for n in range(5000)]
    assert kstest(ways, "uniform", args=(0.03, 0.04)).pvalue > 0.001
    close = [taken.take(b"", 501 + n * 1e-4)[0][0] for n in range(500)]
    assert close == sorted(close)
    taken = direction(Link(delay=0.05, reorder=0.1, late=0.01))
    at = [taken.take(b"", n * 1e-3)[0][0] - n * 1e-3 for n in range(1000)]
    late = sum(x == pytest.approx(0.06) for x in at)
    assert late == taken.counters.reordered > 50
    assert sum(x == pytest.approx(0.05) for x in at) == 1000 - late


def test_a_cut_link_drops_all():
    taken = direction(Link())
    taken.is_cut = True
    assert [taken.take(bytes(10), 0.0) for _ in range(5)] == [[]] * 5
    taken.is_cut = False
    assert taken.take(b"text", 3.0) == [(3.0, b"text")]
    assert (taken.counters.cut, taken.counters.dropped, taken.counters.packets) == (5, 5, 6)


def test_the_checksum_finds_a_flipped_bit_and_not_swapped_words():
    for protocol in (6, 17):
        for length in (5, 6, 7, 100):
            whole = packet(bytes(range(1, length + 1)), protocol)
            assert fits(whole)
            for step in range(200):
                place = step / 200
                bad = flipped(whole, place)
                (difference,) = [(x, y) for x, y in zip(whole, bad, strict=True) if x != y]
                assert (difference[0] ^ difference[1]).bit_count() == 1
                assert bad[:20] == whole[:20] and not fits(bad)
                swap = swapped(whole, place)
                assert swap != whole and fits(swap) and sorted(swap) == sorted(whole)
        # Nothing to swap: equal words, one word, no payload, a later part of a datagram.
        for same in (packet(bytes(40), protocol), packet(b"ab", protocol), packet(b"")):
            assert swapped(same, 0.5) == same
    later = bytearray(packet(b"abcdef"))
    later[7] = 4
    assert swapped(bytes(later), 0.5) == bytes(later)
    assert flipped(packet(b"")[:20], 0.5) == packet(b"")[:20]


def test_impossible_links_are_refused():
    for fields, said in [
        ({"loss": 1.5}, "loss 1.5 is a probability"),
        ({"loss": -0.1}, "loss -0.1 is not a number from 0 up"),
        ({"delay": math.nan}, "delay nan is not a number"),
        ({"delay": math.inf}, "delay is infinite; a dead link is Network.cut"),
        ({"delay": 0.01, "jitter": 0.02}, "jitter 0.02 s exceeds delay 0.01 s"),
        ({"rate": 0}, "rate 0; a dead link is Network.cut"),
        ({"rate": "fast"}, "rate is 'fast'; expected a number"),
        ({"queue": -1}, "queue -1 is not a number from 0 up"),
        ({"loss": True}, "loss is True; expected a number"),
    ]:
        with pytest.raises(ValueError, match=said):
            Link(**fields)
