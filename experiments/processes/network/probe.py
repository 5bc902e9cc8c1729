"""What sockets of the hosts see of a network: round trips, arrivals, seconds of a transfer.

Packets carry the kernel's own time of arrival (SO_TIMESTAMPNS), and the kernel answers
echo requests by itself. So a busy machine, where this process waits for a core, does not
change these figures.
"""

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

from experiments.processes import namespaces

SO_TIMESTAMPNS, SO_RCVBUFFORCE = 35, 33  # not in the module socket
ECHO_REQUEST, ECHO_REPLY = 8, 0
BUFFER = 1 << 26  # bytes that may arrive before they are read
LONGEST = 1 << 16
PATIENCE = 30.0  # seconds


def host_socket(host: int, kind: int, protocol: int = 0) -> socket.socket:
    """Return a socket of a host, bound to its address."""
    with namespaces.entered(namespaces.name(host)):
        made = socket.socket(socket.AF_INET, kind, protocol)
    made.settimeout(PATIENCE)
    made.bind((namespaces.address(host), 0))
    return made


@contextlib.contextmanager
def pair(sender: int, receiver: int, kind: int) -> Iterator[tuple[socket.socket, ...]]:
    """Yield two sockets (TCP or UDP) that are connected to each other."""
    with host_socket(sender, kind) as one, host_socket(receiver, kind) as other:
        if kind == socket.SOCK_STREAM:
            other.listen()
            one.connect(other.getsockname())
            with other.accept()[0] as accepted:
                accepted.settimeout(PATIENCE)
                yield one, accepted
        else:
            one.connect(other.getsockname())
            other.connect(one.getsockname())
            yield one, other


def receive(stream: socket.socket) -> tuple[bytes, float]:
    """Return a packet and when the kernel had it, as time.time() counts."""
    text, [(_, _, stamp)], _, _ = stream.recvmsg(LONGEST, 64)
    seconds, nanoseconds = struct.unpack("qq", stamp)
    return text, seconds + nanoseconds * 1e-9


def round_trips(sender: int, receiver: int, count: int) -> list[float]:
    """Ping a host; return the seconds until each answer. Lost ones are left out."""
    found = []
    with host_socket(sender, socket.SOCK_RAW, socket.IPPROTO_ICMP) as stream:
        stream.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        stream.settimeout(2.0)
        for number in range(count):
            start = time.time()
            stream.sendto(echo(number), (namespaces.address(receiver), 0))
            with contextlib.suppress(TimeoutError):
                text, at = receive(stream)
                while text[20] != ECHO_REPLY or text[26:28] != struct.pack("!H", number):
                    text, at = receive(stream)
                found.append(at - start)
    return found


def echo(number: int) -> bytes:
    # The checksum is the complement of the sum of the other words, none of which is large.
    checksum = 0xFFFF - ((ECHO_REQUEST << 8) + number)
    return struct.pack("!BBHHH", ECHO_REQUEST, 0, checksum, 0, number)


def arrivals(
    sender: int, receiver: int, count: int, num_bytes: int = 4, silence: float = 0.3
) -> list[tuple[int, float]]:
    """Send numbered datagrams at once; return (number, time) of those that arrive.

    `num_bytes`: the payload of each. It ends when nothing came for `silence` seconds.
    """
    found = []
    with pair(sender, receiver, socket.SOCK_DGRAM) as (one, other):
        other.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        other.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        for number in range(count):
            one.send(number.to_bytes(4, "big").ljust(num_bytes, b"\0"))
        while select.select([other], [], [], silence)[0]:
            text, at = receive(other)
            found.append((int.from_bytes(text[:4], "big"), at))
    return found


def transfer(sender: int, receiver: int, text: bytes) -> tuple[float, bytes]:
    """Send bytes by TCP; return the seconds until they are there, and what has arrived."""
    arrived = bytearray()

    def read(stream: socket.socket) -> None:
        while more := stream.recv(1 << 20):
            arrived.extend(more)

    with pair(sender, receiver, socket.SOCK_STREAM) as (one, other):
        thread = threading.Thread(target=read, args=[other])
        thread.start()
        start = time.perf_counter()
        one.sendall(text)
        one.shutdown(socket.SHUT_WR)
        thread.join()
        return time.perf_counter() - start, bytes(arrived)
