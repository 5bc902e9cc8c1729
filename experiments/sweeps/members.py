"""Members of a sweep: from their overrides to a config, or to a command's flags."""

import pathlib
import sys
from typing import Any

from configs import fields
from configs.base import Experiment
from configs.sweeps.combine import LAUNCH, Member, names
from configs.sweeps.strategies import MEMBERS
from experiments.run.python_file import call_function
from experiments.run.startup import read_config_file
from lm.data.rows.growth import rows_before


def as_flags(overrides: Member) -> list[str]:
    """Write overrides as a command's flags."""
    return [f"--config.{name}={value}" for name, value in overrides.items()]


def known(names: list[str]) -> list[str]:
    """Return the names; ValueError if one of them is not a member."""
    for name in names:
        if name not in MEMBERS:
            raise ValueError(f"--only={name}: choose among {', '.join(MEMBERS)}")
    return names


Sweep = dict[str, Member]  # name -> member
LONGEST_NAME = 200  # bytes of a folder's name; file systems take 255, endings included


def load_sweep(file: str | None) -> Sweep:
    """Import a sweep file; ValueError if it is not a sweep."""
    if not file:
        raise ValueError(
            "no --sweep given; for example --sweep=configs/sweeps/degree_batch.py"
        )
    members = call_function(file, "get_sweep")
    check_members(file, members)
    named = dict(zip(names(members), members, strict=True))
    for name in named:
        if len(name.encode()) > LONGEST_NAME or not name.isprintable():
            raise ValueError(
                f"--sweep={file}: {name[:80]!r} cannot be a folder's name; a member's "
                f"values must make a printable one of at most {LONGEST_NAME} bytes"
            )
    return named


def check_members(file: str, members: Any) -> None:
    """Raise ValueError unless `members` is a list of dicts from names to JSON values."""
    if not isinstance(members, list | tuple):
        given = type(members).__name__
        raise ValueError(f"{file}: get_sweep() returns a {given}; expected a list of dicts")
    if not members:
        raise ValueError(f"{file}: get_sweep() returned no member")
    for member in members:
        if not (isinstance(member, dict) and all(isinstance(key, str) for key in member)):
            raise ValueError(
                f"{file}: get_sweep() has the member {member!r}; expected a dict of names "
                "and values"
            )
        for key, value in member.items():
            if not isinstance(value, str | int | float):
                raise ValueError(
                    f"{file}: a member's {key} is {value!r}; expected a number or a word"
                )


def member_config(name: str, member: Member) -> Experiment:
    """Return a member's config; ValueError for a field or a value that it cannot have."""
    try:
        file = member.get("config", "")
        if not (isinstance(file, str) and pathlib.Path(file).is_file()):
            raise ValueError(f"there is no config file {file!r}")
        check_launch(member)
        config = fields.override(read_config_file(file), overrides(member))
        config.validate()
    except ValueError as error:
        raise ValueError(f"member {name}: {error}") from None
    return config


def check_launch(member: Member) -> None:
    """Raise ValueError for impossible numbers of devices, processes or cores."""
    for key, least in [("devices", 1), ("processes", 1), ("cores", 0)]:
        value = member.get(key, least)
        if type(value) is not int or value < least:
            raise ValueError(f"{key} is {value!r}; expected a whole number from {least} up")
    devices, processes = member.get("devices"), member.get("processes", 1)
    if devices and devices % processes:
        raise ValueError(f"{devices} devices are not divisible by {processes} processes")


def overrides(member: Member) -> Member:
    return {key: value for key, value in member.items() if key not in LAUNCH}


def command(member: Member, workdir: pathlib.Path, *more: str) -> list[str]:
    """Return the command that trains a member in its workdir."""
    training = [f"--config={member['config']}", f"--workdir={workdir}", *more]
    training += as_flags(overrides(member))
    devices, processes = member.get("devices"), member.get("processes", 1)
    cores = member.get("cores", 0)
    if processes == 1 and not cores:
        given = [f"--devices={devices}"] if devices else []
        return [sys.executable, "-m", "experiments.train", *training, *given]
    launch = [f"--processes={processes}", f"--cores_per_process={cores}"]
    if devices:
        launch.append(f"--devices_per_process={devices // processes}")
    return [sys.executable, "-m", "experiments.launch", *launch, "--", *training]


def total_tokens(config: Experiment) -> int:
    data = config.data
    return rows_before(data.batch_size, data.growth, config.steps) * data.seq_len
