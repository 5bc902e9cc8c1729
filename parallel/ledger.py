"""The wire ledger: which collectives a compiled program runs, and the bytes they send.

Read from the optimised HLO, so it is what the compiler decided, not what was asked for.
Bytes are those that one device sends in one step under ring algorithms, n being the bytes
of the whole array and N the devices: all-reduce 2 n (N-1)/N; all-gather, reduce-scatter
and all-to-all n (N-1)/N; collective-permute n.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

ITEM_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
CALL = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=%([\w.\-]+)")
TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


class Entry(NamedTuple):
    kind: str
    count: float  # executions in a step
    elements: float  # of the whole arrays, in a step
    sent_bytes: float  # by one device, in a step


def ledger(hlo: str, degree: int) -> dict[str, Entry]:
    """Sum the collectives of a compiled program's text, loops counted as often as they run.

    `degree` is the number of devices that a collective spans which does not say so itself;
    one that spans single devices sends nothing and is left out.
    """
    computations, entry = split_computations(hlo)
    totals: dict[str, Entry] = {}
    for kind, result, line, times in walk(computations, entry, 1):
        if (span := group_size(line, degree)) == 1:
            continue
        sizes = [
            (math.prod(map(int, filter(None, dims.split(",")))), ITEM_BYTES[dtype])
            for dtype, dims in ARRAY.findall(result)
            if dtype in ITEM_BYTES
        ]
        whole = span if kind == "reduce-scatter" else 1  # its result is one part
        elements = whole * sum(size for size, _ in sizes)
        num_bytes = whole * sum(size * item for size, item in sizes)
        share = (span - 1) / span
        factor = {"all-reduce": 2 * share, "collective-permute": 1}.get(kind, share)
        old = totals.get(kind, Entry(kind, 0, 0, 0))
        totals[kind] = Entry(
            kind,
            old.count + times,
            old.elements + times * elements,
            old.sent_bytes + times * factor * num_bytes,
        )
    return totals


def group_size(line: str, default: int) -> int:
    """Read from a collective's line how many devices take part in it together.

    As lists {{0,1},{2,3}}, as [groups, size]<=[devices], or as mesh['a'=2,'b'=2] {'b'}.
    """
    if (found := re.search(r"replica_groups=\{\{([\d,]+)\}", line)) is not None:
        return len(found[1].split(","))
    if (found := re.search(r"replica_groups=\[\d+,(\d+)\]", line)) is not None:
        return int(found[1])
    if (found := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line)) is not None:
        degrees = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(degrees[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    return default


def split_computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Return the lines of each computation by name, and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry = current = ""
    for line in hlo.splitlines():
        if header := re.match(r"(ENTRY )?%([\w.\-]+) .*\{$", line):
            current = header[2]
            computations[current] = []
            entry = current if header[1] else entry
        elif current:
            computations[current].append(line)
    return computations, entry


def walk(
    computations: dict[str, list[str]], name: str, times: int
) -> Iterator[tuple[str, str, str, int]]:
    """Yield (kind, result type, line, executions) of every collective under `name`."""
    for line in computations[name]:
        if found := COLLECTIVE.search(line):
            result = found[1]
            if found[3] and found[2] != "all-reduce":
                # An asynchronous start returns (operands, results, ...).
                result = result.split("), (")[-1].split(", ")[-1]
            yield found[2], result, line, times
            continue
        trips = int(m[1]) if (m := TRIPS.search(line)) else 1
        for callee in CALL.findall(line):
            yield from walk(computations, callee, times * trips)
