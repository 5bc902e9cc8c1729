"""Members of a sweep: from their overrides to a config, or to a command's flags."""

from configs.base import Experiment
from configs.sweeps.combine import Member
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
