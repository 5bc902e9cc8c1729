"""The benchmark of the planner: its grid, its tables, and the published runs."""

import statistics

from experiments.studies.plan_accuracy.grid import (
    ABSENT,
    absent_cells,
    compiled_cells,
    config_of,
    timed_cells,
)
from experiments.studies.plan_accuracy.maxtext import FITTED, RUNS, lines, model_of
from experiments.studies.plan_accuracy.tables import tables
from lm.task import num_parameters


def test_the_grid_is_large_and_every_cell_is_a_config():
    cells = compiled_cells() + timed_cells()
    assert len(compiled_cells()) >= 100 and len(timed_cells()) >= 100
    assert len({str(cell) for cell in cells}) == len(cells)
    for cell in cells[::7]:
        config_of(cell).validate()
    assert len(absent_cells()) == len(ABSENT)


def test_published_runs_of_the_named_sizes_are_predicted():
    for name, run in RUNS.items():
        billions = num_parameters(model_of(run, run.rows).params) / 1e9
        assert abs(billions / float(name[:-1]) - 1) < 0.05
    found = lines()
    errors = [abs(x["predicted"] / x["published"] - 1) for x in found if not x["fitted"]]
    assert len(found) == 24 and len(FITTED) <= 4
    assert statistics.median(errors) < 0.08 and max(errors) < 0.15


def test_regret_is_that_of_the_planned_choice():
    def line(strategy: str, planned: float, *seconds: float) -> list[dict]:
        head = {"part": "timed", "shape": 0, "rate": 0.0, "accumulation": 1}
        head |= {"strategy": strategy, "planned_seconds": planned}
        return [head | {"time": i, "seconds": s} for i, s in enumerate(seconds)]

    # The plan takes the first, whose best time is a quarter above that of the second.
    told = line("fsdp", 1.0, 1.25, 1.5) + line("zero1", 2.0, 1.0, 1.0)
    told += line("jit", 3.0, 3.0, 3.3)
    found = tables(told)
    assert "| 0 | no limit | 3 | 25% | fsdp, 1 | zero1, 1 | 25.0% |" in "".join(
        " ".join(row.split()) for row in found["plan-regret"].splitlines()
    )
    # Three pairs, of 1.5 to 1.25, 1 to 1 and 3.3 to 3.
    assert "| the same cell measured twice | 3 | 9.1% |" in found["plan-time"]
    assert "not measured" in found["plan-compiled"]
