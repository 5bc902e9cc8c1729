"""Sweeps as lists: a member is a dict of overrides, a sweep is a list of members.

    product(each("devices", 1, 2), each("seed", 0, 1))      # four members: each with each
    zipped(each("devices", 1, 2), each("seed", 0, 1))       # two: firsts, seconds
    each("devices", 1, 2) + each("seed", 0, 1)              # four: one key in each

The keys of a member are names of config fields ("optim.learning_rate") and four keys that
belong to the launch:

  config     the config file
  devices    the number of devices, over all processes together
  processes  the number of processes
  cores      CPU cores for each process; without it all processes share all cores
"""

import itertools
from typing import Any

Member = dict[str, Any]
LAUNCH = ("config", "devices", "processes", "cores")  # keys that are not the config's
# Keys whose values usually follow from other keys. The name of a member contains one of
# them only if no other key tells the members apart.
FOLLOWING = (
    "steps",
    "optim.warmup_steps",
    "eval_every",
    "save_every",
    "eval_batches",
    "parallel.data",
)
EVAL_ROWS = 256  # rows in each evaluation during a run


def each(key: str, *values: Any) -> list[Member]:
    """Return a member for each value of a key."""
    return [{key: value} for value in values]


def product(*lists: list[Member]) -> list[Member]:
    """Join members in every combination; the last list varies fastest, later keys win."""
    return [merge(members) for members in itertools.product(*lists)]


def zipped(*lists: list[Member]) -> list[Member]:
    """Join the first members, the second, and so on; ValueError if a list is longer."""
    return [merge(members) for members in zip(*lists, strict=True)]


def degrees(*numbers: int) -> list[Member]:
    """Return a member for each n: n devices as n replicas; CPU devices are emulated."""
    return [{"devices": n, "parallel.data": n} for n in numbers]


def merge(members: tuple[Member, ...]) -> Member:
    return {key: value for member in members for key, value in member.items()}


def distinct(members: list[Member]) -> list[Member]:
    """Drop members that are equal to a member before."""
    return [m for i, m in enumerate(members) if m not in members[:i]]


def names(members: list[Member]) -> list[str]:
    """Name each member by the keys that differ; ValueError if two members are equal."""
    keys = list(dict.fromkeys(key for member in members for key in member))
    keys = [key for key in keys if len({repr(m.get(key)) for m in members}) > 1]
    for key in FOLLOWING:
        others = [k for k in keys if k != key]
        told = {tuple(repr(m.get(k)) for k in others) for m in members}
        if key in keys and len(told) == len(members):
            keys = others
    last = [key.rpartition(".")[2] for key in keys]
    short = {k: s if last.count(s) == 1 else k for k, s in zip(keys, last, strict=True)}
    found = [
        ",".join(f"{short[k]}={m[k]}" for k in keys if k in m) or "base" for m in members
    ]
    found = [name.replace("/", "_") for name in found]
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise ValueError(f"the sweep has the member {twice} twice; see combine.distinct")
    return found


def at_tokens(tokens: int, members: list[Member], seq_len: int) -> list[Member]:
    """Give each member so many steps that it sees about `tokens` tokens.

    The warm-up and the intervals between evaluations and between checkpoints are the same
    share of each run. Each evaluation has the same number of rows.
    """
    found = []
    for member in members:
        steps = max(round(tokens / (member["data.batch_size"] * seq_len)), 1)
        schedule = {
            "steps": steps,
            "optim.warmup_steps": max(steps // 10, 1),
            "eval_every": max(steps // 8, 1),
            "eval_batches": max(EVAL_ROWS // member["data.batch_size"], 1),
            "save_every": max(steps // 4, 1),
        }
        found.append(schedule | member)
    return found
