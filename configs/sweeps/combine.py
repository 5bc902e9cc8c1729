"""Sweeps as lists: a member is a dict of overrides, a sweep is a list of members.

    product(each("devices", 1, 2), each("seed", 0, 1))      # four members
    zipped(each("devices", 1, 2), each("seed", 0, 1))       # two
    each("devices", 1, 2) + each("seed", 0, 1)              # a chain: four

The keys of a member are dotted fields of the config ("optim.learning_rate") and four that
belong to the launch: "config" (the config's file), "devices" (the number of all devices),
"processes" (the devices are divided among them) and "cores" (CPU cores for each process;
without it all processes share all cores).
"""

import itertools
from typing import Any

Member = dict[str, Any]
LAUNCH = ("config", "devices", "processes", "cores")  # keys that are not the config's
# Keys that follow from others as a rule; a member's name has them only if it must.
FOLLOWING = (
    "steps",
    "optim.warmup_steps",
    "eval_every",
    "save_every",
    "eval_batches",
    "parallel.data",
)
EVAL_ROWS = 256  # of the evaluations on the way


def each(key: str, *values: Any) -> list[Member]:
    return [{key: value} for value in values]


def product(*lists: list[Member]) -> list[Member]:
    """Join every combination; the last list varies fastest. Later keys win."""
    return [merge(members) for members in itertools.product(*lists)]


def zipped(*lists: list[Member]) -> list[Member]:
    """Join the first members, the second ones, and so on; ValueError if one is longer."""
    return [merge(members) for members in zip(*lists, strict=True)]


def degrees(*numbers: int) -> list[Member]:
    """Take the first n devices as n replicas; where there is no accelerator, emulate n."""
    return [{"devices": n, "parallel.data": n} for n in numbers]


def merge(members: tuple[Member, ...]) -> Member:
    return {key: value for member in members for key, value in member.items()}


def distinct(members: list[Member]) -> list[Member]:
    """Drop members that say the same as one before."""
    return [m for i, m in enumerate(members) if m not in members[:i]]


def names(members: list[Member]) -> list[str]:
    """Name each member by what differs between members; ValueError if two are the same."""
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
    """Give each member the steps in which its batch size sees about `tokens` tokens.

    Warm-up and evaluations on the way keep their share of the run, and evaluations their
    number of rows.
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
