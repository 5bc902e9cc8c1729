"""Faults that a run is made to meet, as values: what goes wrong, where, and when.

A file for --faults has a function that returns a list of them:

    from experiments.processes.faults import AtStep, Drawn, FlippedParameter, Kill

    def get_faults():
        return [
            Kill(AtStep(7), process=1),
            FlippedParameter(AtStep(12), device=3, leaf=0, element=5, bit=20),
            Drawn(("kill", "stop"), number=10, every=AtStep(40), seed=1),
        ]

The same faults come of the same seed. A fault acts once in a run, however often the run is
started again.
"""

from dataclasses import dataclass
from typing import NamedTuple

from experiments.processes.network.link import Link

LARGE = 2**31 - 1  # of numbers that are taken modulo what there is


class AtStep(NamedTuple):
    """Before this step is taken."""

    step: int


class AtSeconds(NamedTuple):
    """So long after the run first began to train."""

    seconds: float


When = AtStep | AtSeconds


@dataclass(frozen=True)
class Kill:
    """A process is killed (SIGKILL)."""

    at: When
    process: int = 0


@dataclass(frozen=True)
class Stop:
    """A process is stopped (SIGSTOP), and goes on after some seconds; 0: never."""

    at: When
    process: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Slow:
    """A process takes so many seconds longer for each of some steps."""

    at: When
    process: int = 0
    seconds: float = 0.5
    steps: int = 3


@dataclass(frozen=True)
class FullDisk:
    """The next checkpoint cannot be written: there is no room."""

    at: AtStep


@dataclass(frozen=True)
class ReadOnlyDisk:
    """The next checkpoint cannot be written: the disk takes no writes."""

    at: AtStep


@dataclass(frozen=True)
class TornCheckpoint:
    """The machine of process 0 fails, and half of the newest checkpoint's largest file."""

    at: When


@dataclass(frozen=True)
class FlippedCheckpoint:
    """A bit of the newest checkpoint is flipped, and process 0 is killed."""

    at: When
    bit: int = 0  # of the middle byte of its largest file


@dataclass(frozen=True)
class CorruptRecord:
    """A bit of the tokens of a prepared training row is flipped on the disk."""

    at: When
    record: int = 0
    bit: int = 0


@dataclass(frozen=True)
class FlippedParameter:
    """A bit of a parameter is flipped in the memory of one device.

    The numbers are taken modulo how many there are: of leaves that the device has a copy
    of, of elements, and of bits.
    """

    at: When
    device: int = 0
    leaf: int = 0
    element: int = 0
    bit: int = 0


@dataclass(frozen=True)
class FlippedGradient:
    """A bit of a gradient is flipped on the replica that sees a row, before the sum.

    The numbers are taken modulo how many leaves, elements and bits there are.
    """

    at: AtStep
    row: int = 0  # place in the global batch
    leaf: int = 0
    element: int = 0
    bit: int = 0


@dataclass(frozen=True)
class BadLink:
    """A link is far, slow or lossy for some seconds; 0: for good."""

    at: When
    between: tuple[int, int] = (0, 1)
    one_way: bool = False  # only from the first of the two to the second
    seconds: float = 3.0
    link: Link = Link(delay=0.05)


@dataclass(frozen=True)
class DeadLink:
    """Nothing passes between two processes for some seconds; 0: never again."""

    at: When
    between: tuple[int, int] = (0, 1)
    one_way: bool = False  # only from the first of the two to the second
    seconds: float = 1.0


@dataclass(frozen=True)
class Partition:
    """Nothing passes between a group of processes and the rest for some seconds.

    0: never again.
    """

    at: When
    group: tuple[int, ...] = (1,)
    seconds: float = 1.0


@dataclass(frozen=True)
class KillWorker:
    """A worker of a parameter server is killed; the number is modulo how many there are."""

    at: When
    victim: int = 0


@dataclass(frozen=True)
class KillShard:
    """A shard of a parameter server is killed; the number is modulo how many there are."""

    at: When
    victim: int = 0


@dataclass(frozen=True)
class FlippedFrame:
    """A bit of the next copy of its state that a process sends is flipped on the way."""

    at: When
    process: int = 0
    bit: int = 0  # of the middle byte


KINDS = {
    "kill": Kill,
    "stop": Stop,
    "slow": Slow,
    "full_disk": FullDisk,
    "read_only_disk": ReadOnlyDisk,
    "torn_checkpoint": TornCheckpoint,
    "flipped_checkpoint": FlippedCheckpoint,
    "corrupt_record": CorruptRecord,
    "flipped_parameter": FlippedParameter,
    "flipped_gradient": FlippedGradient,
    "bad_link": BadLink,
    "dead_link": DeadLink,
    "partition": Partition,
    "kill_worker": KillWorker,
    "kill_shard": KillShard,
    "flipped_frame": FlippedFrame,
}
# Of links that experiments.launch --links has made.
OF_LINKS = (BadLink, DeadLink, Partition)
OF_SERVER = (KillWorker, KillShard)
# What a drawn BadLink is like.
BAD = (
    Link(delay=0.05),
    Link(delay=0.01, jitter=0.01),
    Link(rate=10e6, queue=125_000),
    Link(loss=0.05),
    Link(reorder=0.1, duplicate=0.1),
    Link(damage=0.02),  # TCP's checksum finds it
)
IN_STEP = (FullDisk, ReadOnlyDisk, FlippedGradient)
Fault = (
    Kill | Stop | Slow | FullDisk | ReadOnlyDisk | TornCheckpoint | FlippedCheckpoint
    | CorruptRecord | FlippedParameter | FlippedGradient | BadLink | DeadLink | Partition
    | KillWorker | KillShard | FlippedFrame
)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """Faults of some kinds, with times and targets drawn from a seed.

    `every` is the mean of the exponential gaps between them.
    """

    kinds: tuple[str, ...]
    number: int
    every: When
    seed: int


class Setting(NamedTuple):
    """What there is to go wrong."""

    num_processes: int
    num_devices: int
    num_records: int  # rows of training text
    batch_size: int
