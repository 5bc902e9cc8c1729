"""Which faults a run meets, of those that its file gives: checked, and drawn from seeds."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.processes.faults import (
    BAD,
    IN_STEP,
    KINDS,
    LARGE,
    OF_LINKS,
    AtSeconds,
    AtStep,
    BadLink,
    Drawn,
    Fault,
    Partition,
    Setting,
)


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
    check_types(fault)
    if not is_time(fault.at):
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
    if not 0 <= (seconds := getattr(fault, "seconds", 0)) < math.inf:
        raise ValueError(f"{fault}: seconds {seconds} is not a number from 0 up")
    if (steps := getattr(fault, "steps", 1)) < 1:
        raise ValueError(f"{fault}: steps {steps} is not a number from 1 up")
    check_link(fault, setting.num_processes)


def check_types(fault: Fault) -> None:
    """Raise ValueError for a field that has not the type of its default."""
    alike = {float: int | float, tuple: tuple | list}
    for field in dataclasses.fields(fault):
        if field.name == "at":
            continue
        value, kind = getattr(fault, field.name), type(field.default)
        is_alike = isinstance(value, alike.get(kind, kind))
        if not is_alike or isinstance(value, bool) != (kind is bool):
            raise ValueError(
                f"{fault}: {field.name} is {value!r}; expected a {kind.__name__}"
            )


def is_time(when: Any) -> bool:
    """Tell whether it is AtStep of a whole number, or AtSeconds, above 0."""
    whole = isinstance(when, AtStep)
    if not whole and not isinstance(when, AtSeconds):
        return False
    return isinstance(when[0], int if whole else int | float) and 0 < when[0] < math.inf


def check_link(fault: Fault, num_processes: int) -> None:
    """Raise ValueError for a link that there is not."""
    if not isinstance(fault, OF_LINKS):
        return
    hosts = range(num_processes)
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
    check_drawn(spec)
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


def check_drawn(spec: Drawn) -> None:
    """Raise ValueError for what no fault can be drawn of."""
    check_kinds(spec.kinds)
    if not spec.kinds:
        raise ValueError(f"{spec}: kinds is empty; choose of {', '.join(KINDS)}")
    for name, value, least in (("number", spec.number, 1), ("seed", spec.seed, 0)):
        if not isinstance(value, int) or value < least:
            raise ValueError(
                f"{spec}: {name} {value!r} is not a whole number from {least} up"
            )
    if not is_time(spec.every):
        raise ValueError(
            f"{spec}: `every` must be AtStep or AtSeconds of a positive number"
        )


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
