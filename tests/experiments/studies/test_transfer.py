"""Ways to send: what arrives, and its time against what the link says."""

import random
import struct

import pytest

from experiments.processes import namespaces
from experiments.processes.network.emulator import network
from experiments.processes.network.link import Link
from experiments.studies.transfer import sending
from experiments.studies.transfer.packing import shuffled, unshuffled
from experiments.studies.transfer.tables import pays_below, transfer_tables

RNG = random.Random(0)


@pytest.mark.skipif(
    bool(namespaces.lacking()), reason=f"needs {namespaces.lacking() or 'nothing'}"
)
def test_sending_takes_what_the_link_says():
    data = RNG.randbytes(300_001)
    with network(2, Link(delay=0.02, rate=20e6)) as net:
        for num_streams in (1, 3):
            # A round trip to connect, half of one on the way, the rest by the rate.
            ideal = 0.06 + len(data) * 8 / 20e6 * 1500 / 1448
            assert ideal * 0.95 < sending.by_streams(data, num_streams)  # checks the bytes
        for size, trips in [(5, 4), (20, 1)]:
            assert sending.in_batches([b"message"] * 20, size) >= 0.04 * trips
        before = net.counters()[0, 1].bytes
        cache: dict[bytes, bytes] = {}
        _, first = sending.missing_only(data, 1 << 14, cache)
        _, second = sending.missing_only(data, 1 << 14, cache)
        _, third = sending.missing_only(data + b"x", 1 << 14, cache)
        sent = net.counters()[0, 1].bytes - before
    num = -(-len(data) // (1 << 14))  # pieces, each named by 32 bytes, answered by one
    assert first == 33 * num + len(data) and second == 33 * num
    assert third == 33 * num + len(data) % (1 << 14) + 1
    assert b"".join(cache.values()).startswith(data)
    assert first + second + third < sent < 1.2 * (first + second + third)


def test_parts_and_pieces_hold_all_bytes_once():
    for length in (0, 1, 7, 100):
        data = RNG.randbytes(length)
        for num in (1, 3, 16):
            cut = sending.parts(data, num)
            assert b"".join(cut) == data
            assert max(map(len, cut)) - min(map(len, cut)) <= 1
    assert len(sending.pieces(bytes(1000), 100)) == 1  # equal pieces are one


def test_bytes_of_a_kind_lie_together_and_come_back():
    numbers = struct.pack("<3I", 0x04030201, 0x14131211, 0x24232221)
    assert shuffled(numbers, 4).hex() == "011121021222031323041424"
    for width in (1, 2, 4, 8):
        data = RNG.randbytes(8 * 13)
        assert unshuffled(shuffled(data, width), width) == data
    for function in (shuffled, unshuffled):
        with pytest.raises(ValueError, match="10 bytes are not numbers of 4 bytes each"):
            function(bytes(10), 4)


def test_the_tables():
    packed = {
        "member": "compression", "what": "parameters", "how": "zstd 1", "bytes": 4_000_000,
        "packed": 3_000_000, "pack_seconds": 0.03, "unpack_seconds": 0.01,
    }  # fmt: skip
    assert pays_below(packed) == pytest.approx(1e6 * 8 / 0.04)
    assert pays_below(packed | {"packed": 5_000_000}) == 0
    lines = [
        packed,
        {"member": "messages", "rtt": 10, "batch": 1, "seconds": 1.0},
        {"member": "cache", "change": "nothing new", "sent": 10, "bytes": 1000}
        | {"seconds": 0.5},
    ]
    found = transfer_tables(lines)
    assert "| parameters | zstd 1 | 4.0 | 0.750 | 133 | 400 | 200 |" in found["compression"]
    assert "| 10 | 1.000 |" in found["messages"]
    assert "| nothing new | 0.0100 | 0.5000 |" in found["cache"]
