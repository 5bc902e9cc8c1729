"""The wire ledger: which collectives a compiled program runs, and the bytes they send.

The ledger is read from the optimised HLO, so it has what the compiler decided, not what was
asked for. Bytes are those that one device sends in one step under ring algorithms, for an
array of b bytes and a group of n devices: all-reduce 2 b (n-1)/n; all-gather,
reduce-scatter and all-to-all b (n-1)/n; collective-permute b for each pair of devices,
averaged over all.

A loop counts as often as it runs, and each branch of a conditional as if it were taken. The
text of a program does not tell how often a branch is taken. Two names do: a collective in
the function `once_in_K_steps` counts 1/K, and one in the scope `warmup` (jax.named_scope)
does not count. The ledger of the warm-up (`warm`) has those alone, each of them once.
"""

import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

ROOT = pathlib.Path(__file__).parents[2]
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COLLECTIVE = re.compile(rf"%([\w.\-]+) = (.*?) ({'|'.join(KINDS)})(-start)?\(")
START = re.compile(r"%([\w.\-]+) = .*? ([a-z\-]+)-start\(")
ARRAY = re.compile(r"\b((?:pred|[a-z]+\d\w*))\[([\d,]*)\]")
CALL = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=%([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
CONDITION = re.compile(r"condition=%([\w.\-]+)")
BOUND = re.compile(r" s32\[\]\S* constant\((\d+)\)")
CHAIN = re.compile(r'chain_id="(\d+)"')
COMPUTES = re.compile(r" (?:fusion|dot|convolution|custom-call|call|while)\(")


class Entry(NamedTuple):
    kind: str
    axes: tuple[str, ...]  # of the mesh, over which it runs
    dtypes: tuple[str, ...]  # as HLO has them: f32, u8, ...
    count: float  # executions in a step
    elements: float  # of the whole arrays, in a step
    largest: int  # elements of the largest whole array of one execution
    sent_bytes: float  # by one device, in a step
    source: str  # file:line of this repository that asked for it, where that is known
    # Instructions that compute between its start and its end; None: nothing else runs.
    overlap: int | None


def ledger(hlo: str, mesh: Mesh, warm: bool = False) -> list[Entry]:
    """List the collectives of a compiled program's text, the largest first.

    Collectives with the same kind, axes, types and source are one entry.
    """
    merged: dict[tuple, Entry] = {}
    for found in collectives(hlo, mesh, warm):
        key = (found.kind, found.axes, found.dtypes, found.source, found.overlap)
        old = merged.get(key, found._replace(count=0, elements=0, sent_bytes=0))
        merged[key] = old._replace(
            count=old.count + found.count,
            elements=old.elements + found.elements,
            largest=max(old.largest, found.largest),
            sent_bytes=old.sent_bytes + found.sent_bytes,
        )
    return sorted(merged.values(), key=lambda entry: -entry.sent_bytes)


def step_ledger(step: Any, mesh: Mesh, warm: bool = False) -> list[Entry]:
    """List the collectives of a compiled step, or of all the programs that it has.

    Islands have several (parallel/islands/program.py), each with a mesh of its own.
    """
    programs = getattr(step, "programs", [(step, mesh)])
    found = [e for one, on in programs for e in ledger(one.as_text(), on, warm)]
    return sorted(found, key=lambda entry: -entry.sent_bytes)


def collectives(hlo: str, mesh: Mesh, warm: bool = False) -> Iterator[Entry]:
    """Yield each collective instruction, but none from a device to itself."""
    computations, entry = split_computations(hlo)
    frames = Frames(hlo)
    for line, times, overlap, scatters in walk(computations, entry, 1.0):
        share = frequency(line)
        times *= float(share == 0) if warm else share
        found = read_collective(line, times, mesh, frames, overlap, scatters)
        if found.axes and (times or not warm):
            yield found


def frequency(line: str) -> float:
    """Return the share of the steps in which an instruction runs.

    The compiler names merged instructions `common/(one:other)`. They run as often as the
    most frequent of them.
    """
    scope = m[1] if (m := re.search(r'op_name="([^"]*)"', line)) else ""
    common, _, merged = scope.partition("/(")
    return max(scoped(f"{common}/{one}") for one in merged.rstrip(")").split(":"))


def scoped(name: str) -> float:
    # Transformations wrap a scope: jvp(warmup). But jit(warmup) is a function's name.
    if re.search(r"(^|/|(?<!jit)\()warmup([/):]|$)", name):
        return 0.0
    return 1 / int(m[1]) if (m := re.search(r"once_in_(\d+)_steps", name)) else 1.0


def read_collective(
    line: str,
    times: float,
    mesh: Mesh,
    frames: "Frames",
    overlap: int | None,
    scatters: bool = False,
) -> Entry:
    """Read an instruction; `scatters`: an all-reduce of which each device keeps a part."""
    _, result, kind, asynchronous = COLLECTIVE.search(line).groups()
    if asynchronous and kind != "all-reduce":
        result = tuple_parts(result)[1]  # of (operands, results, contexts...)
    arrays = [
        (math.prod(map(int, filter(None, dims.split(",")))), dtype)
        for dtype, dims in ARRAY.findall(result)
    ]
    if kind == "collective-permute":
        pairs = re.findall(r"\{(\d+),(\d+)\}", line.split("source_target_pairs=")[1])
        pairs = [tuple(map(int, pair)) for pair in pairs]
        groups = np.array([pair for pair in pairs if pair[0] != pair[1]]).reshape(-1, 2)
        share = len(groups) / mesh.size
    else:
        groups = replica_groups(line, mesh)
        share = (groups.shape[1] - 1) / groups.shape[1]
    whole = groups.shape[1] if kind == "reduce-scatter" else 1  # its result is one part
    kind = "reduce-scatter" if scatters else kind
    num_bytes = whole * sum(size * item_bytes(dtype) for size, dtype in arrays)
    return Entry(
        kind=kind,
        axes=spanned(groups, mesh),
        dtypes=tuple(sorted({dtype for _, dtype in arrays})),
        count=times,
        elements=times * whole * sum(size for size, _ in arrays),
        largest=whole * max(size for size, _ in arrays),
        sent_bytes=times * num_bytes * share * (2 if kind == "all-reduce" else 1),
        source=frames.source(line),
        overlap=overlap,
    )


def item_bytes(dtype: str) -> float:
    """Return the bytes of an element; its name has the bits: bf16, f8e4m3fn, s4, c64."""
    return 1 if dtype == "pred" else int(re.search(r"\d+", dtype)[0]) / 8


def tuple_parts(type_text: str) -> list[str]:
    """Split the type of a tuple into its elements' types."""
    parts, depth = [""], 0
    for char in type_text[1:-1]:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def replica_groups(line: str, mesh: Mesh) -> np.ndarray:
    """Return the groups of device positions, [groups, devices]; HLO has four notations."""
    if m := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", line):
        return np.array(
            [list(map(int, g.split(","))) for g in re.findall(r"[\d,]+\d|\d", m[1])]
        )
    if m := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        shape, dims, order = (
            list(map(int, x.split(","))) if x else None for x in m.groups()
        )
        ids = np.arange(math.prod(dims)).reshape(dims)
        return (ids.transpose(order) if order else ids).reshape(shape)
    if m := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", m[1])}
        ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        dims = [list(sizes).index(name) for name in re.findall(r"'([^']+)'", m[2])]
        last = np.moveaxis(ids, dims, range(-len(dims), 0))
        return last.reshape(-1, math.prod(ids.shape[dim] for dim in dims))
    return np.arange(mesh.size)[None]


def spanned(groups: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    """Return the axes along which the devices of any group differ."""
    if groups.size == 0:
        return ()
    places = np.unravel_index(groups, mesh.devices.shape)
    return tuple(
        name
        for name, place in zip(mesh.axis_names, places, strict=True)
        if (place != place[:, :1]).any()
    )


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
    computations: dict[str, list[str]],
    name: str,
    times: float,
    overlap: int | None = None,
) -> Iterator[tuple[str, float, int | None, bool]]:
    """Yield (line, executions, overlap, scatters) of every collective reached from `name`.

    `overlap` is that of the async-start that wraps the computation, if there is one. TPUs
    run a computation `all-reduce-scatter`, which has an all-reduce and takes parts of its
    result, as one reduce-scatter. Their asynchronous collectives are chains of fusions: the
    first starts it, those between compute something else too, and the last waits for it.
    """
    lines = computations[name]
    chains = [chain(computations, line) for line in lines]
    for index, line in enumerate(lines):
        start, here = START.search(line), overlap
        if start:
            here = computing_until(start, lines[index + 1 :])
        elif own := chains[index]:
            if own in chains[:index]:
                continue
            last = max(i for i, other in enumerate(chains) if other == own)
            here = sum(1 for between in lines[index + 1 : last] if COMPUTES.search(between))
        if COLLECTIVE.search(line):
            yield line, times, here, name.startswith("all-reduce-scatter")
            continue
        callees = CALL.findall(line)
        if branches := BRANCHES.search(line):
            callees += re.findall(r"%([\w.\-]+)", branches[1])
        for callee in callees:
            yield from walk(computations, callee, times * trips(computations, line), here)


def trips(computations: dict[str, list[str]], line: str) -> int:
    """Return how often a loop runs; 1 for other instructions, and where it is not known.

    A TPU's program has no `known_trip_count`. There a loop counts from 0, as JAX's loops
    do, up to the one constant of its condition.
    """
    if known := TRIPS.search(line):
        return int(known[1])
    condition = CONDITION.search(line)
    text = "\n".join(computations.get(condition[1], [])) if condition else ""
    bounds = BOUND.findall(text) if "direction=LT" in text else []
    return int(bounds[0]) if len(bounds) == 1 else 1


def chain(computations: dict[str, list[str]], line: str) -> str:
    """Return the number of the asynchronous chain that a fusion is part of; "": of none."""
    inside = (text for name in CALL.findall(line) for text in computations.get(name, []))
    found = (CHAIN.search(text) for text in inside if COLLECTIVE.search(text))
    return next((m[1] for m in found if m), "")


def computing_until(start: re.Match, later: list[str]) -> int:
    """Count the computing instructions between an asynchronous start and its done."""
    name, kind = start.groups()
    done = re.compile(rf" {kind}-done\(.*%{re.escape(name)}(?![\w.\-])")
    end = next((i for i, line in enumerate(later) if done.search(line)), 0)
    return sum(bool(COMPUTES.search(line)) for line in later[:end])


class Frames:
    """The tables at the head of a program that name the source line of an instruction."""

    def __init__(self, hlo: str):
        self.names = dict(re.findall(r'^(\d+) "(.*)"$', section(hlo, "FileNames"), re.M))
        self.places = {
            number: (name, line)
            for number, name, line in re.findall(
                r"^(\d+) \{file_name_id=(\d+) .*?line=(\d+)",
                section(hlo, "FileLocations"),
                re.M,
            )
        }
        self.frames = {
            number: (place, parent)
            for number, place, parent in re.findall(
                r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)",
                section(hlo, "StackFrames"),
                re.M,
            )
        }

    def source(self, line: str) -> str:
        """Return the innermost file:line in this repository; "" if there is none."""
        frame = m[1] if (m := re.search(r"stack_frame_id=(\d+)", line)) else "0"
        for _ in range(len(self.frames)):
            place, parent = self.frames.get(frame, ("", "0"))
            name, number = self.places.get(place, ("", ""))
            path = pathlib.Path(self.names.get(name, ""))
            # An environment may lie inside the repository.
            if path.is_relative_to(ROOT) and "site-packages" not in path.parts:
                return f"{path.relative_to(ROOT)}:{number}"
            frame = str(int(parent) - 1)  # printed one higher, for 0 means none
        return ""


def section(hlo: str, title: str) -> str:
    return m[1] if (m := re.search(rf"^{title}\n(.*?)\n\n", hlo, re.M | re.S)) else ""
