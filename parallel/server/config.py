"""The config of a parameter server."""

import math
from dataclasses import dataclass, field

from parallel.balance.policies import POLICIES
from parallel.exchange.config import CODECS, ExchangeConfig
from parallel.server.attendance import check_attendance

MODES = ("sync", "async", "ssp")
MOST_WORKERS = 64  # a checkpoint has room for so many numbers that are out
MOST_NUMBERS = 1 << 15  # that are out where a push has several

PUSHING = {"parallel.strategy": ("parameter_server",)}  # gradients, not moves
TOGETHER = PUSHING | {".mode": ("sync",)}  # all workers take part in an update
APART = {".mode": ("async", "ssp")}  # a push is an update
# `grid` arranges pieces by length, and those of a number are equally long.
LIVE = [name for name in POLICIES if name != "grid"]
FREE = {"decides": False}


@dataclass
class ServerConfig:
    # sync: the pushes of all workers make one update; async: each push is an update, when
    # it comes; ssp: async, but no worker runs ahead of the slowest by more than `staleness`
    # pushes
    mode: str = field(default="sync", metadata={"choices": MODES, "only": PUSHING})
    # number of workers, which compute gradients; of async_diloco: of islands, which train
    workers: int = field(default=4, metadata={"at_least": 1, "at_most": MOST_WORKERS})
    # number of server shards; each has some of the parameters and their optimizer state
    shards: int = field(default=2, metadata={"at_least": 1})
    # who computes which piece of a number's rows, by the seconds that workers took before
    # (docs/balance.md)
    policy: str = field(
        default="static", metadata={"choices": LIVE, "only": TOGETHER, "decides": False}
    )
    # pieces of a number's rows, each of which is a push; 0: as many as workers
    pieces: int = field(default=0, metadata={"at_least": 0, "only": TOGETHER})
    # most pushes by which a worker may be ahead of the slowest one
    staleness: int = field(default=2, metadata={"at_least": 0, "only": {".mode": ("ssp",)}})
    # lambda of DC-ASGD, which corrects a late gradient to first order; 0: no correction
    compensation: float = field(default=0.0, metadata={"at_least": 0, "only": APART})
    # factor of an update; inverse: 1 / the number of updates since its worker pulled
    weigh: str = field(
        default="none", metadata={"choices": ("none", "inverse"), "only": APART}
    )
    # who has the optimizer state; server: shards apply pushed gradients; worker: each
    # worker has its own, and pushes what its optimizer makes of a gradient
    optimizer: str = field(
        default="server", metadata={"choices": ("server", "worker"), "only": PUSHING}
    )
    # pulls are compressed too, as differences, by the codec of parallel.exchange
    compress_pulls: bool = field(
        default=False, metadata={"only": {"parallel.exchange.codec": CODECS}}
    )
    # where workers and shards run; here: in this process, in turn; ray: in processes of
    # their own, on this machine or on the cluster of RAY_ADDRESS (requirements-ray.txt)
    pool: str = field(default="here", metadata={"choices": ("here", "ray"), **FREE})
    # how many times slower than the others each worker is, as in (1, 1, 1, 4); (): none is
    slow: tuple = field(default=(), metadata=FREE)
    # workers that join or leave a live run: (updates, worker, "joins" or "leaves"), ...
    attendance: tuple = field(default=(), metadata=FREE)
    # a step's duration varies by this standard deviation of its logarithm; seeded
    jitter: float = field(default=0.0, metadata={"at_least": 0, **FREE})
    # least seconds that a worker takes for a whole number, times how slow it is
    floor: float = field(
        default=0.0, metadata={"at_least": 0, "only": {".pool": ("ray",)}, **FREE}
    )
    # updates between two snapshots of the shards, from which a dead shard comes back
    snapshot_every: int = field(
        default=20, metadata={"at_least": 1, "only": {".pool": ("ray",)}, **FREE}
    )

    @property
    def synchronous(self) -> bool:
        return self.mode == "sync"

    @property
    def num_pieces(self) -> int:
        """The pushes that an update of `sync` is made of."""
        return self.pieces or self.workers

    @property
    def slowness(self) -> tuple[float, ...]:
        return self.slow or (1.0,) * self.workers

    @property
    def bound(self) -> int | None:
        """The most pushes that a worker may be ahead; None: any number."""
        return self.staleness if self.mode == "ssp" else None

    def validate(self, exchange: ExchangeConfig, strategy: str) -> None:
        """Raise ValueError for fields that do not fit together."""
        if self.slow and len(self.slow) != self.workers:
            raise ValueError(
                f"parallel.server.slow has {len(self.slow)} numbers, but there are "
                f"parallel.server.workers {self.workers}; give a number for each worker"
            )
        if any(
            isinstance(each, bool)
            or not isinstance(each, int | float)
            or not 1 <= each < math.inf
            for each in self.slow
        ):
            raise ValueError(
                f"parallel.server.slow is {self.slow!r}; expected numbers of 1 and more, "
                "the times by which each worker is slower"
            )
        check_attendance(self.attendance, self.workers)
        if self.attendance and self.synchronous:
            raise ValueError(
                f"parallel.server.attendance is {self.attendance!r}, but with "
                "parallel.server.mode=sync the workers share the rows of each number, and "
                "all of them must be there; choose async or ssp, or unset it"
            )
        if self.compensation and self.optimizer == "worker":
            raise ValueError(
                f"parallel.server.compensation {self.compensation} corrects gradients, but "
                "with parallel.server.optimizer=worker updates are pushed; choose server, "
                "or unset the compensation"
            )
        self.check_pieces(exchange)
        if exchange.clip and self.optimizer == "worker":
            raise ValueError(
                f"parallel.exchange.clip {exchange.clip} clips gradients, but with "
                "parallel.server.optimizer=worker updates are pushed, which are made of "
                "clipped gradients (optim.clip_norm) already; choose server, or unset the "
                "clip"
            )
        check_exchange(exchange, strategy)

    def check_pieces(self, exchange: ExchangeConfig) -> None:
        """Raise ValueError if pieces go to any worker that keeps something of its own."""
        if self.policy == "static" and self.num_pieces == self.workers:
            return
        if exchange.codec != "none" or self.optimizer == "worker":
            keeps = (
                f"parallel.exchange.codec={exchange.codec}"
                if exchange.codec != "none"
                else "parallel.server.optimizer=worker"
            )
            raise ValueError(
                f"parallel.server.policy={self.policy} with {self.num_pieces} pieces for "
                f"parallel.server.workers {self.workers} does not go with {keeps}: what a "
                "worker keeps of its pushes belongs to the piece that it always has; leave "
                "policy at static and pieces at 0, or unset the other"
            )


def check_exchange(exchange: ExchangeConfig, strategy: str) -> None:
    """Raise ValueError for what an exchange between replicas has and a push has not."""
    usual = ExchangeConfig()
    for name, reason in {
        "algorithm": "a push goes to the server shards",
        "bucket_bytes": "a push has a part for each shard (parallel.server.shards)",
        "every": "a worker pushes once for each number",
        "delay": "the delay is that of the workers (parallel.server.mode=async)",
        "compensation": "that of a server is parallel.server.compensation",
    }.items():
        if (value := getattr(exchange, name)) != getattr(usual, name):
            raise ValueError(
                f"parallel.exchange.{name} is {value}, but has no effect under strategy "
                f"{strategy!r}: {reason}; unset it"
            )
    if exchange.codec == "none":
        return
    exchange.check_codec()
    if CODECS[exchange.codec](exchange).packing is None:
        able = [name for name, make in CODECS.items() if make(exchange).packing]
        raise ValueError(
            f"parallel.exchange.codec={exchange.codec} needs all replicas at once, and a "
            f"push is of one worker; choose one of none, {', '.join(able)}"
        )
