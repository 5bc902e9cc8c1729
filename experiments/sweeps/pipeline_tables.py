"""Tables from the results of experiments.studies.pipeline_bubble."""

from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown


def pipeline_tables(lines: list[Line]) -> dict[str, str]:
    """Return the tables of schedules and of timed steps.

    If a point was measured twice, the last measurement counts.
    """
    points = {"pipeline": {}, "pipeline-timed": {}}
    for line in lines:
        point = tuple(line.get(x) for x in ("schedule", "stages", "microbatches", "chunks"))
        points["pipeline-timed" if "seconds" in line else "pipeline"][point] = line
    return {name: plain_table(list(x.values())) for name, x in points.items() if x}


def plain_table(records: list[Line]) -> str:
    names = list(records[0])
    body = [
        [f"{x:.3g}" if isinstance(x, float) else x for x in map(record.get, names)]
        for record in records
    ]
    return markdown([name.replace("_", " ") for name in names], body)
