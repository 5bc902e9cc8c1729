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

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

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


def kind_of(fault: Fault) -> str:
    return next(name for name, kind in KINDS.items() if kind is type(fault))


def planned(faults: Sequence[Fault | Drawn], setting: Setting) -> list[Fault]:
    """Return all faults, the drawn ones too; ValueError for one that cannot be.

    The number of a fault is its place in this list.
    """
    plan: list[Fault] = []
    for fault in faults:
        if isinstance(fault, Drawn):
            plan += drawn(fault, setting)
            continue
        if type(fault) not in KINDS.values():
            raise ValueError(
                f"get_faults() returns {fault!r}, which is no fault; expected values of "
                f"{', '.join(kind.__name__ for kind in KINDS.values())} or Drawn"
            )
        plan.append(fault)
    for fault in plan:
        check(fault, setting)
    return plan


def check(fault: Fault, setting: Setting) -> None:
    """Raise ValueError for a time or a target that there is not."""
    if not isinstance(fault.at, AtStep | AtSeconds) or fault.at[0] <= 0:
        raise ValueError(f"{fault}: `at` must be AtStep or AtSeconds of a positive number")
    if isinstance(fault, IN_STEP) and not isinstance(fault.at, AtStep):
        raise ValueError(
            f"{fault}: it happens in all processes, so `at` must be AtStep, not AtSeconds"
        )
    for name, number in (
        ("process", setting.num_processes),
        ("device", setting.num_devices),
        ("record", setting.num_records),
        ("row", setting.batch_size),
    ):
        if not 0 <= getattr(fault, name, 0) < number:
            raise ValueError(
                f"{fault}: there is no {name} {getattr(fault, name)}; the run has "
                f"{number}, numbered from 0"
            )

    check_link(fault, setting.num_processes)


def check_link(fault: Fault, num_processes: int) -> None:
    """Raise ValueError for a link that there is not."""
    if not isinstance(fault, OF_LINKS):
        return
    hosts = range(num_processes)
    if not 0 <= fault.seconds < math.inf:
        raise ValueError(f"{fault}: seconds {fault.seconds} is not a number from 0 up")
    if isinstance(fault, Partition):
        group = set(fault.group)
        if not group or not group < set(hosts):
            raise ValueError(
                f"{fault}: the group {fault.group} must hold some and not all of the "
                f"processes 0 to {num_processes - 1}"
            )
        return
    pair = tuple(fault.between)
    if len(set(pair)) != 2 or len(pair) != 2 or not set(pair) <= set(hosts):
        raise ValueError(
            f"{fault}: there is no link between {pair}; the run has {num_processes} "
            "processes, numbered from 0"
        )


def ways(fault: Fault, num_processes: int) -> list[tuple[int, int]]:
    """Return the directions (sender, receiver) that a fault of a link hits."""
    if isinstance(fault, Partition):
        rest = [host for host in range(num_processes) if host not in fault.group]
        pairs = [(a, b) for a in fault.group for b in rest]
    else:
        pairs = [fault.between]
    is_one_way = getattr(fault, "one_way", False)
    return [*pairs, *((b, a) for a, b in pairs if not is_one_way)]


def drawn(spec: Drawn, setting: Setting) -> Iterator[Fault]:
    """Draw faults; the n-th is a function of (seed, n) and the gaps before it."""
    check_kinds(spec.kinds)
    at = 0.0
    for number in range(spec.number):
        rng = np.random.default_rng((spec.seed, number))
        at += rng.exponential(spec.every[0])
        kind = KINDS[spec.kinds[rng.integers(len(spec.kinds))]]
        by_steps = isinstance(spec.every, AtStep)
        when = AtStep(max(int(np.ceil(at)), 2)) if by_steps else AtSeconds(round(at, 3))
        numbers = {
            "process": setting.num_processes,
            "device": setting.num_devices,
            "record": setting.num_records,
            "row": setting.batch_size,
            "leaf": LARGE,
            "element": LARGE,
            "bit": 64,
            "victim": LARGE,
        }
        names = [field.name for field in dataclasses.fields(kind)]
        targets = {
            name: int(rng.integers(most)) for name, most in numbers.items() if name in names
        }
        if kind in OF_LINKS:
            targets |= drawn_link(kind, rng, setting.num_processes)
        yield kind(when, **targets)


def drawn_link(
    kind: type[Fault], rng: np.random.Generator, num_processes: int
) -> dict[str, Any]:
    if num_processes < 2:
        raise ValueError(
            f"Drawn has faults of links, and the run has {num_processes} process; start "
            "more, with experiments.launch --links"
        )
    order = tuple(map(int, rng.permutation(num_processes)))
    if kind is Partition:
        return {"group": order[: rng.integers(1, num_processes)]}
    found: dict[str, Any] = {"between": order[:2], "one_way": bool(rng.integers(2))}
    if kind is BadLink:
        found["link"] = BAD[rng.integers(len(BAD))]
    return found


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise ValueError, with the list, for a kind of fault that there is not."""
    for name in kinds:
        if name not in KINDS:
            raise ValueError(
                f"there is no kind of fault {name!r}; choose of {', '.join(KINDS)}"
            )


def as_dict(number: int, fault: Fault) -> dict[str, object]:
    """Return a line of faults.jsonl: all that the fault is, and nothing of the moment."""
    values = {name: x for name, x in vars(fault).items() if name != "at"}
    if isinstance(fault, BadLink):
        values["link"] = fault.link.told()
    return {"number": number, "kind": kind_of(fault), **fault.at._asdict(), **values}
