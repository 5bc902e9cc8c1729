"""Tables of what experiments.studies.pipeline_bubble measured."""

from experiments.sweeps.results import Line


def pipeline_tables(lines: list[Line]) -> dict[str, str]:
    """Return the tables of schedules and of timed steps; of a point measured twice, the
    last."""
    points = {"pipeline": {}, "pipeline-timed": {}}
    for line in lines:
        point = tuple(line.get(x) for x in ("schedule", "stages", "microbatches", "chunks"))
        points["pipeline-timed" if "seconds" in line else "pipeline"][point] = line
    return {name: plain_table(list(x.values())) for name, x in points.items() if x}


def plain_table(records: list[Line]) -> str:
    names = list(records[0])
    out = [f"| {' | '.join(names).replace('_', ' ')} |", f"|{'---|' * len(names)}"]
    for record in records:
        cells = [record.get(name, "") for name in names]
        cells = [f"{x:.3g}" if isinstance(x, float) else str(x) for x in cells]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out)
