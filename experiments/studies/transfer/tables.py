"""The tables of docs/questions/how-are-bytes-sent.md."""

from experiments.sweeps.results import Line
from experiments.sweeps.tables import digits, markdown


def of(lines: list[Line], member: str) -> list[Line]:
    return [line for line in lines if line["member"] == member]


def transfer_tables(lines: list[Line]) -> dict[str, str]:
    """Return the tables by name; without results they are empty but for their heads."""
    return {
        "streams": spread(of(lines, "streams"), ("congestion", "rtt", "loss"), "streams"),
        "messages": spread(of(lines, "messages"), ("rtt",), "batch"),
        "compression": compression_table(of(lines, "compression")),
        "cache": cache_table(of(lines, "cache")),
    }


HEADS = {"congestion": "TCP", "rtt": "round trip, ms", "loss": "loss, %"}


def spread(lines: list[Line], rows: tuple[str, ...], column: str) -> str:
    """Tabulate seconds, a line for each value of `rows` and a column for each of one."""
    columns = sorted({line[column] for line in lines})
    keys = list(dict.fromkeys(tuple(line[name] for name in rows) for line in lines))
    found = {
        (tuple(line[name] for name in rows), line[column]): line["seconds"]
        for line in lines
    }
    body = [
        [*(f"{x:g}" if isinstance(x, int | float) else x for x in key)]
        + [digits(found[key, c]) if (key, c) in found else "" for c in columns]
        for key in keys
    ]
    return markdown([*(HEADS[name] for name in rows), *map(str, columns)], body)


def pays_below(line: Line) -> float:
    """Return the rate (bits a second) below which packing saves time.

    There the link needs longer for the saved bytes than packing and unpacking take.
    """
    spent = line["pack_seconds"] + line["unpack_seconds"]
    return max(line["bytes"] - line["packed"], 0) * 8 / spent


def compression_table(lines: list[Line]) -> str:
    body = [
        [
            *(line["what"], line["how"], f"{line['bytes'] / 1e6:.1f}"),
            f"{line['packed'] / line['bytes']:.3f}",
            *(
                f"{line['bytes'] / line[f'{name}_seconds'] / 1e6:.0f}"
                for name in ("pack", "unpack")
            ),
            f"{pays_below(line) / 1e6:.0f}",
        ]
        for line in lines
    ]
    head = ["", "", "MB", "left", "pack, MB/s", "unpack, MB/s", "pays below, Mbit/s"]
    return markdown(head, body)


def cache_table(lines: list[Line]) -> str:
    body = [
        [line["change"], f"{line['sent'] / line['bytes']:.4f}", digits(line["seconds"])]
        for line in lines
    ]
    return markdown(["since the last time", "sent, share of all", "seconds"], body)
