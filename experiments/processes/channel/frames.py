"""Messages between processes, each with a CRC-32C of its own.

Damage that TCP's checksum misses (Stone and Partridge 2000) is found here, and so is damage
in memory between two sockets. What is damaged is never taken: the receiver closes the
connection, and the one who asked begins again.
"""

import json
import socket
import struct
from collections.abc import Callable
from typing import Any

import google_crc32c

HEAD = struct.Struct(">QI")  # bytes of the payload, its CRC-32C
SUM = struct.Struct(">I")  # CRC-32C of the head, so that its length can be trusted
TRIES = 3
SECONDS = 5.0  # for a connection, and for each piece of an answer
PIECE = 1 << 20
Address = tuple[str, int]
Changed = Callable[[bytes], bytes]


class DamagedFrame(OSError):
    """What has arrived is not what was sent."""


def send(stream: socket.socket, payload: bytes, changed: Changed = bytes) -> None:
    """Send a frame. `changed` is what happens to the payload on its way, in tests."""
    head = HEAD.pack(len(payload), google_crc32c.value(payload))
    stream.sendall(head + SUM.pack(google_crc32c.value(head)) + changed(payload))


def receive(stream: socket.socket) -> bytes:
    """Return the payload of a frame; DamagedFrame if it is another one, or cut short."""
    start = read(stream, HEAD.size + SUM.size)
    head, (total,) = start[: HEAD.size], SUM.unpack(start[HEAD.size :])
    if google_crc32c.value(head) != total:
        raise DamagedFrame("the head of a frame is damaged")
    num_bytes, crc = HEAD.unpack(head)
    payload = read(stream, num_bytes)
    if google_crc32c.value(payload) != crc:
        raise DamagedFrame(f"a frame of {num_bytes} bytes is damaged")
    return payload


def read(stream: socket.socket, num_bytes: int) -> bytes:
    found = bytearray()
    while len(found) < num_bytes:
        more = stream.recv(min(num_bytes - len(found), PIECE))
        if not more:
            raise DamagedFrame(f"{len(found)} of {num_bytes} bytes have arrived")
        found += more
    return bytes(found)


def ask(
    address: Address, question: Any, payload: bytes = b"", changed: Changed = bytes
) -> tuple[Any, bytes]:
    """Return the answer to a question, and the bytes that came with it.

    Asks again if a frame is damaged or the connection breaks. Raises OSError in the end.
    """
    for left in range(TRIES - 1, -1, -1):
        try:
            with socket.create_connection(address, SECONDS) as stream:
                send(stream, json.dumps(question).encode())
                send(stream, payload, changed)
                return json.loads(receive(stream)), receive(stream)
        except OSError:
            if not left:
                raise
    raise AssertionError("unreachable")
