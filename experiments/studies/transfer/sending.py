"""Ways to send bytes from one host to another: streams, batches, and only what is new."""

import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from experiments.processes.network.probe import PATIENCE, pair

SENDER, RECEIVER = 0, 1
DIGEST = 32  # bytes of SHA-256
ANSWER = b"."


@contextlib.contextmanager
def reading(stream: socket.socket, count: int) -> Iterator[bytearray]:
    """Read bytes of a stream in a thread; they are all there at the end of the block."""
    found = bytearray()

    def read() -> None:
        while len(found) < count and (more := stream.recv(1 << 20)):
            found.extend(more)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield found
    finally:
        thread.join()


def parts(data: bytes, num: int) -> list[memoryview]:
    """Cut bytes into `num` parts whose lengths differ by at most 1."""
    bounds = [len(data) * i // num for i in range(num + 1)]
    view = memoryview(data)
    return [view[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]


def by_streams(data: bytes, num_streams: int) -> float:
    """Send bytes over TCP connections at once; return the seconds until all are there.

    Connecting is within these seconds.
    """

    def send(part: memoryview) -> bytearray:
        with pair(SENDER, RECEIVER, socket.SOCK_STREAM) as (one, other):
            one.settimeout(None)  # of all of it, not of a packet
            with reading(other, len(part)) as arrived:
                one.sendall(part)
        return arrived

    with ThreadPoolExecutor(num_streams) as pool:
        start = time.perf_counter()
        arrived = list(pool.map(send, parts(data, num_streams)))
        seconds = time.perf_counter() - start
    if b"".join(arrived) != data:
        raise RuntimeError(f"{len(data)} bytes sent by {num_streams} streams came changed")
    return seconds


def in_batches(messages: Sequence[bytes], size: int) -> float:
    """Send messages, `size` of them at once, and wait for an answer to each batch."""
    batches = [b"".join(messages[i : i + size]) for i in range(0, len(messages), size)]

    def answer(stream: socket.socket) -> None:
        for batch in batches:
            with reading(stream, len(batch)):
                pass
            stream.send(ANSWER)

    with pair(SENDER, RECEIVER, socket.SOCK_STREAM) as (one, other):
        for stream in (one, other):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        thread = threading.Thread(target=answer, args=[other])
        thread.start()
        start = time.perf_counter()
        for batch in batches:
            one.sendall(batch)
            one.recv(1)
        seconds = time.perf_counter() - start
        thread.join()
    return seconds


def pieces(data: bytes, size: int) -> dict[bytes, bytes]:
    """Cut bytes into pieces of a size; return digest -> piece, equal ones once."""
    cut = (data[i : i + size] for i in range(0, len(data), size))
    return {hashlib.sha256(piece).digest(): piece for piece in cut}


def missing_only(data: bytes, size: int, cache: dict[bytes, bytes]) -> tuple[float, int]:
    """Send the pieces that a receiver's cache lacks; return the seconds and the bytes.

    The sender names all pieces by their digests; the receiver answers with a byte for each,
    1 for one that it lacks. The cache holds all of them afterwards.
    """
    named = pieces(data, size)
    digests = b"".join(named)
    start = time.perf_counter()
    with pair(SENDER, RECEIVER, socket.SOCK_STREAM) as (one, other):
        one.settimeout(PATIENCE)
        with reading(other, len(digests)) as asked:
            one.sendall(digests)
        names = [bytes(asked[i : i + DIGEST]) for i in range(0, len(asked), DIGEST)]
        with reading(one, len(names)) as lacking:
            other.sendall(bytes(name not in cache for name in names))
        chosen = [n for n, lacks in zip(named, lacking, strict=True) if lacks]
        wanted = b"".join(named[name] for name in chosen)
        with reading(other, len(wanted)) as arrived:
            one.sendall(wanted)
    seconds = time.perf_counter() - start
    at = 0
    for name in chosen:
        piece = bytes(arrived[at : at + len(named[name])])
        if hashlib.sha256(piece).digest() != name:
            raise RuntimeError("a piece came changed: its digest is another")
        cache[name] = piece
        at += len(piece)
    return seconds, len(digests) + len(names) + len(wanted)
