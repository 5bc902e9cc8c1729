"""One of two processes that greet each other, for a test of what starts them.

Process 0 listens at the coordinator's address. Process 1 ends with exit code 0 if the
answer takes at least 20 ms.
"""

import socket
import sys
import time


def main(given: dict[str, str]) -> int:
    host, port = given["--coordinator"].split(":")
    if given["--process_id"] == "0":
        with socket.create_server((host, int(port))) as server:
            server.settimeout(30)
            peer, _ = server.accept()
            peer.sendall(peer.recv(9))
            peer.recv(9)  # until the other has gone
        return 0
    assert host == "10.77.0.1"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            peer = socket.create_connection((host, int(port)), 30)
            break
        except ConnectionRefusedError:  # it does not listen yet
            time.sleep(0.05)
    start = time.perf_counter()
    peer.sendall(b"hello")
    assert peer.recv(9) == b"hello"
    return 0 if time.perf_counter() - start >= 0.02 else 3


if __name__ == "__main__":
    sys.exit(main(dict(flag.split("=", 1) for flag in sys.argv[1:])))
