"""A function over a stream of pieces on Ray: the cores of this machine, or of a cluster.

These are plain Ray tasks, a bounded number at a time, taken back in order. Ray Data has no
source that is a stream of this process: its readers run in tasks, and items must be in
memory as a whole. But the documents are a stream (of any source, or of the last pass with a
verdict for each), so Ray Data would need them in a file first, and would give no other
bytes. A task whose worker died is run again by Ray itself, three times.
"""

import collections
import logging
import os
import pathlib
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, TypeVar

Piece = TypeVar("Piece")
Made = TypeVar("Made")

AHEAD = 3  # pieces for each core that wait or are made, which bounds the memory
ANSWER_SECONDS = 10.0


def import_ray() -> ModuleType:
    """Import Ray without its usage statistics; ValueError if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when it is imported
    # A worker that dies leaves several answers, of which the first tells of it.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            f"Ray cannot be imported ({error}); pip install -r requirements-ray.txt"
        ) from None
    return ray


def start_ray(
    ray: ModuleType,
    address: str,
    num_cores: int,
    code: Sequence[pathlib.Path],
    store_bytes: int | None = None,
) -> None:
    """Start Ray here, or join a cluster; ValueError if none answers at the address.

    `store_bytes` is the size of the object store of a Ray that is started here; None:
    Ray's own choice.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        here = {"num_cpus": num_cores, "object_store_memory": store_bytes}
        with warnings.catch_warnings():  # JAX warns of forks; Ray's children are others
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            ray.init("local", include_dashboard=False, **here, **quiet)
        return
    shipped = {"py_modules": [str(folder) for folder in code]}
    check_address(address)
    try:
        ray.init(address, runtime_env=shipped, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise no_answer(address, error) from None


class RayTasks:
    """Ray while a `with` lasts: started on this machine, or joined at an address."""

    def __init__(self, address: str, num_cores: int, code: Sequence[pathlib.Path]):
        """ValueError without Ray.

        address: of a cluster, such as "auto" or "10.0.0.1:6379"; "": Ray is started here,
        on `num_cores` cores. code: folders of packages that a cluster's machines are sent.
        """
        self.ray, self.address = import_ray(), address
        self.num_cores, self.code = num_cores, code

    def __enter__(self) -> "RayTasks":
        start_ray(self.ray, self.address, self.num_cores, self.code)
        return self

    def __exit__(self, *_) -> None:
        self.ray.shutdown()

    def map(
        self,
        function: Callable[[Piece], Made],
        pieces: Iterable[Piece],
        size: Callable[[Piece], int],
    ) -> Iterator[Made]:
        """Yield function(piece) of each piece in order."""
        # A lambda is sent by value: a cluster's machines need not have this module.
        task = self.ray.remote(lambda function, piece: function(piece))
        sent = self.ray.put(function)
        most = AHEAD * max(1, int(self.ray.cluster_resources().get("CPU", 1)))
        pending: collections.deque[Any] = collections.deque()
        for piece in pieces:
            pending.append(task.remote(sent, piece))
            if len(pending) >= most:
                yield self.ray.get(pending.popleft())
        while pending:
            yield self.ray.get(pending.popleft())


def check_address(address: str) -> None:
    """Raise ValueError if nothing listens at HOST:PORT; Ray would wait for very long."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise no_answer(address, error) from None


def no_answer(address: str, error: Exception) -> ValueError:
    return ValueError(
        f"no Ray cluster answers at {address!r} ({error}); give the address that "
        "`ray start --head` printed, with its token in RAY_AUTH_TOKEN if it has one; or "
        "none, and Ray is started on this machine"
    )
