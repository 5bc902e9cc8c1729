"""What a soak has shown, read from the files of its runs."""

import pathlib
import re
import statistics
from collections import Counter
from typing import Any

from experiments.processes.files import whole_records
from experiments.run.checkpoint import saved_digests
from experiments.run.log import read_metrics
from experiments.run.survival import daly, goodput
from experiments.run.survival.injection import logged

# What a run says of a fault that it has met: regular expressions.
SAID = {
    "parted": "replicas have parted in ",
    "damaged_checkpoint": r"warning: the checkpoint at step \d+ is damaged",
    "corrupt_record": " is damaged: its CRC-32C is not ",
    "stuck": " has waited ",
    "killed": " was killed by SIGKILL",
    "damaged_frame": " is damaged; it is sent again",
    "worker_died": " its numbers are handed out again",
    "shard_died": " another process takes over from its snapshot",
}


def steps_of(workdir: pathlib.Path) -> list[int]:
    records = read_metrics(workdir / "metrics.jsonl")
    return [record["step"] for record in records if record["split"] == "train"]


def tell_sync(faulty: pathlib.Path, plain: pathlib.Path, rows: int) -> dict[str, Any]:
    """Return the figures of a run whose end is to be that of a run without faults.

    `rows` is the size of a batch.
    """
    steps, usual = steps_of(faulty), steps_of(plain)
    last = max(usual)
    same = saved_digests(faulty, last) == saved_digests(plain, last)
    return injected(faulty) | {
        "steps": last,
        "rows_lost": rows * len(set(usual) - set(steps)),
        "rows_repeated": rows * (len(steps) - len(set(steps))),
        "bitwise": same and losses(faulty) == losses(plain),
        **recovery(faulty),
    }


def tell_server(served: pathlib.Path, audit: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return the figures of a run of a parameter server, of which there is an audit.

    `rows` is those of a number. Its end is compared with a replay in one process.
    """
    return injected(served) | {
        "steps": audit["updates"],
        "rows_lost": rows * audit["lost"],
        "rows_repeated": rows * audit["repeated"],
        "bitwise": audit["replay_equal"],
        **recovery(served),
    }


def injected(workdir: pathlib.Path) -> dict[str, Any]:
    """Return which faults have happened, and what the runs have said of them."""
    kinds = Counter(line["kind"] for line in logged(workdir))
    said = output_of(workdir).read_text(encoding="utf-8", errors="replace")
    # A flip whose process dies before the next check is gone with it, unnamed.
    return {
        "kinds": dict(sorted(kinds.items())),
        "faults": kinds.total(),
        "named": named(said),
    }


def output_of(workdir: pathlib.Path) -> pathlib.Path:
    """Return the file of what the processes of a run have printed."""
    return workdir.with_suffix(".log")


def together(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of all runs together.

    `accepted` counts the runs whose end is not the one that it should be.
    """
    kinds = sum((Counter(line["kinds"]) for line in lines), Counter())
    seconds = sorted(s for line in lines for s in line["recoveries"])
    told = {
        "kinds": dict(sorted(kinds.items())),
        "faults": kinds.total(),
        "lost": sum(line["rows_lost"] for line in lines),
        "repeated": sum(line["rows_repeated"] for line in lines),
        "accepted": sum(not line["bitwise"] for line in lines),
        "total_seconds": sum(line["total_seconds"] for line in lines),
    }
    worked = sum(line["seconds"].get("step", 0.0) for line in lines)
    told["goodput"] = round(worked / told["total_seconds"], 4)
    if seconds:
        told["recovery_p50"] = round(percentile(seconds, 0.5), 2)
        told["recovery_p99"] = round(percentile(seconds, 0.99), 2)
    return told


def named(output: str) -> dict[str, int]:
    """Count what the runs have said of faults, in their own words."""
    return {name: len(re.findall(words, output)) for name, words in SAID.items()}


def losses(workdir: pathlib.Path) -> list[tuple[int, float]]:
    records = read_metrics(workdir / "metrics.jsonl")
    return [(r["step"], r["loss"]) for r in records if r["split"] == "train"]


def recovery(workdir: pathlib.Path) -> dict[str, Any]:
    """Return the seconds from an end to the next step, and the goodput beside Daly's."""
    events = whole_records(workdir / goodput.FILE)
    lives = goodput.lives_of(events)
    pairs = [
        (before, after)
        for before, after in zip(lives, lives[1:], strict=False)
        if before.last["event"] != "end"
    ]
    seconds = sorted(
        after.began + after.marks[0]["elapsed"] - before.ended for before, after in pairs
    )
    spent = goodput.told(workdir)
    told: dict[str, Any] = {
        "restarts": len(seconds),
        "recoveries": [round(x, 3) for x in seconds],
        "seconds": {part: round(x, 3) for part, x in spent["seconds"].items()},
        "total_seconds": round(spent["total"], 3),
        "goodput": round(spent["step_share"], 4),
    }
    if not seconds:
        return told
    saves = sum(event["event"] == "saved" for event in events)
    parts = spent["seconds"]
    save, restart = parts["checkpoint"] / saves, statistics.fmean(seconds)
    between, work = spent["total"] / len(seconds), parts["step"] / saves
    return told | {
        "recovery_p50": round(percentile(seconds, 0.5), 2),
        "recovery_p99": round(percentile(seconds, 0.99), 2),
        "goodput_by_daly": round(daly.efficiency(work, save, between, restart), 4),
        "best_interval_by_daly": round(daly.interval(save, between), 2),
    }


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
