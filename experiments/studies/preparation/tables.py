"""The tables of what preparation costs, from the lines of its study."""

from experiments.processes.messages import size
from experiments.sweeps.results import Line
from experiments.sweeps.tables import digits, markdown

WORK = {
    "fix": "mojibake, control characters",
    "normalise": "Unicode form, line ends, white space, markup",
    "exact_dedup": "a digest of each document",
    "near_dedup": "MinHash signatures, candidates compared",
    "anomaly": "measures, n-gram, isolation forest",
    "leakage": "held-out documents that repeat others",
    "records": "packed, compressed, and read again",
    "learn tokens": "byte-level BPE, 4,096 tokens",
    "tokenise": "the tokens of each document",
    "pack": "first fit into rows of 257 tokens",
}
NONE = "not measured yet"


def preparation_tables(lines: list[Line]) -> dict[str, str]:
    """Return the tables of the page by name; rows without a line say so."""
    return {
        "parts": parts_table(lines),
        "whole": whole_table(lines),
        "memory": memory_table(lines),
        "equal": equal_table(lines),
    }


def of_kind(lines: list[Line], kind: str) -> list[Line]:
    """Return the lines of a kind, the last of each member, the least text first."""
    found = {line["member"]: line for line in lines if line["kind"] == kind}
    return sorted(found.values(), key=lambda line: line["megabytes"])


def parts_table(lines: list[Line]) -> str:
    found = {line["part"]: line for line in of_kind(lines, "part")}
    rows = [
        [name, what, digits(found[name]["mb_per_s"]) if name in found else NONE]
        for name, what in WORK.items()
    ]
    return markdown(["part", "what it does", "MB/s and core"], rows)


def whole_table(lines: list[Line]) -> str:
    rows = [
        [
            f"{line['megabytes']} MB",
            line["executor"],
            line["workers"],
            f"{line['documents']:,}",
            f"{line['seconds']:.0f} s",
            digits(line["mb_per_s"]),
            size(line["peak"]),
            size(line["peak_workers"]),
        ]
        for line in of_kind(lines, "whole")
    ]
    head = ["text", "executor", "workers", "documents", "seconds", "MB/s"]
    head += ["memory", "of its workers"]
    return markdown(head, rows or [[NONE, *[""] * (len(head) - 1)]])


def memory_table(lines: list[Line]) -> str:
    """Compare each size with the smallest: as a factor, and in bytes a document."""
    rows = []
    for kind, command in (("whole", "prepare"), ("inspect", "inspect")):
        found = [x for x in of_kind(lines, kind) if x.get("executor") != "ray"]
        for line in found:
            least = found[0]
            more = line["peak"] - least["peak"]
            documents = line["documents"] - least["documents"]
            rows.append(
                [
                    command,
                    f"{line['megabytes']} MB",
                    f"{line['documents']:,}",
                    size(line["peak"]),
                    digits(line["peak"] / least["peak"]),
                    size(more / documents) if documents else "",
                ]
            )
    head = ["command", "text", "documents", "memory", "times the least", "more a document"]
    return markdown(head, rows or [[NONE, *[""] * (len(head) - 1)]])


def equal_table(lines: list[Line]) -> str:
    """Tell whether every file is that of the local run, to the byte."""
    wholes = of_kind(lines, "whole")
    local = {x["megabytes"]: x["digest"] for x in wholes if x["executor"] == "local"}
    rows = [
        [f"on Ray, {x['workers']} workers", f"{x['megabytes']} MB", told(x, local)]
        for x in wholes
        if x["executor"] == "ray" and x["megabytes"] in local
    ]
    rows += [
        [
            f"killed after {x['killed_after']:.0f} s, gone on for {x['seconds']:.0f} s",
            f"{x['megabytes']} MB",
            told(x, local),
        ]
        for x in of_kind(lines, "killed")
        if x["megabytes"] in local
    ]
    head = ["preparation", "text", "files equal to the local run's"]
    return markdown(head, rows or [[NONE, "", ""]])


def told(line: Line, local: dict[int, int]) -> str:
    return "all" if line["digest"] == local[line["megabytes"]] else "no"
