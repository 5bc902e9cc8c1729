"""Members of a sweep: from their overrides to a config, or to a command's flags."""

import copy
import importlib.util
import pathlib
import sys
from types import ModuleType

from configs.base import Experiment
from configs.sweeps.combine import LAUNCH, Member, names
from configs.sweeps.strategies import MEMBERS


def override(config: Experiment, overrides: Member) -> Experiment:
    """Set dotted fields of a config in place; AttributeError if it has no such field."""
    for name, value in overrides.items():
        *path, last = name.split(".")
        node = config
        for part in path:
            node = getattr(node, part)
        getattr(node, last)
        setattr(node, last, value)
    return config


def as_flags(overrides: Member) -> list[str]:
    """Write overrides as a command's flags."""
    return [f"--config.{name}={value}" for name, value in overrides.items()]


def known(names: list[str]) -> list[str]:
    """Return the names; ValueError if one of them is no member's."""
    for name in names:
        if name not in MEMBERS:
            raise ValueError(f"--only={name}: choose among {', '.join(MEMBERS)}")
    return names


Sweep = dict[str, Member]  # name -> member


def load_sweep(file: str | None) -> Sweep:
    """Import a sweep file; ValueError for what is wrong in it."""
    if not file:
        raise ValueError(
            "no --sweep given; for example --sweep=configs/sweeps/degree_batch.py"
        )
    if not pathlib.Path(file).is_file():
        raise ValueError(f"--sweep={file}: there is no such file")
    module = import_file(file)
    if not hasattr(module, "get_sweep"):
        raise ValueError(f"--sweep={file} has no get_sweep()")
    members = module.get_sweep()
    if not members:
        raise ValueError(f"--sweep={file}: get_sweep() returned no member")
    return dict(zip(names(members), members, strict=True))


def import_file(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("imported_file", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def member_config(name: str, member: Member) -> Experiment:
    """Return a member's config; ValueError for a field or a value that it cannot have."""
    file = member.get("config", "")
    if not pathlib.Path(file).is_file():
        raise ValueError(f"member {name}: there is no config file {file!r}")
    module = import_file(file)
    devices, processes = member.get("devices", 1), member.get("processes", 1)
    if devices % processes:
        raise ValueError(
            f"member {name}: {devices} devices are not divisible by {processes} processes"
        )
    try:
        config = override(copy.deepcopy(module.get_config()), overrides(member))
        config.validate()
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"member {name}: {error}") from None
    return config


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
    return config.steps * config.data.batch_size * config.data.seq_len
