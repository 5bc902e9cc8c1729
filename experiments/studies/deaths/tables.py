"""The table of the runs in which processes were killed."""

from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown


def deaths_table(lines: list[Line]) -> str:
    """Tell for each run who was killed how often, and what the audit found."""
    head = (
        *("mode", "updates", "workers killed", "shards killed", "trainer killed"),
        *("lost", "repeated", "largest staleness", "replay"),
    )
    kinds = ("worker", "shard", "driver")
    body = [
        [
            *(x["mode"], x["updates"], *(x["killed"].get(kind, 0) for kind in kinds)),
            *(x["lost"], x["repeated"], x["max_staleness"]),
            "the same bits" if x["replay_equal"] else "differs",
        ]
        for x in lines
    ]
    return markdown(head, body) if body else "Not measured yet."
