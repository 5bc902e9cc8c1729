"""The benchmark of the planner: its grid, its tables, and the published runs."""

import statistics

from experiments.studies.plan_accuracy.accelerator import device_cells, device_plan
from experiments.studies.plan_accuracy.cells import (
    absent_mesh,
    absent_plan,
    nothing_known,
    shape_model,
)
from experiments.studies.plan_accuracy.grid import (
    ABSENT,
    MESHES,
    absent_cells,
    compiled_cells,
    config_of,
    timed_cells,
)
from experiments.studies.plan_accuracy.limits import limit_cells
from experiments.studies.plan_accuracy.maxtext import FITTED, RUNS, lines, model_of
from experiments.studies.plan_accuracy.tables import needed, tables
from experiments.studies.plan_accuracy.timed import limited
from experiments.sweeps.results import read
from lm.task import num_parameters
from parallel.cost.machine import Link
from parallel.mesh import batch_degree
from tests.test_structure import ROOT

MOST_SCALARS = 120  # sums of the loss and of gradients' norms


def test_the_grid_is_large_and_every_cell_is_a_config():
    cells = compiled_cells() + timed_cells()
    assert len(compiled_cells()) >= 100 and len(timed_cells()) >= 100
    assert len({str(cell) for cell in cells}) == len(cells)
    for cell in cells[::17]:
        config_of(cell).validate()
    assert len(absent_cells()) == len(ABSENT)
    limits = {str(cell) for cell in limit_cells()}
    assert len(limits) == len(limit_cells()) >= 40


def test_every_cell_of_a_device_has_a_plan():
    plans = [
        device_plan(cell | {"device": "NVIDIA H100 80GB HBM3"}, [])
        for cell in device_cells()
    ]
    # No cell takes less than its floats: parameters, and two moments of Adam.
    least = {"gpt2_small": 12 * 25e6, "llama_1b": 12 * 1.0e9}
    for cell, planned in zip(device_cells(), plans, strict=True):
        hosted = cell["overrides"].get("parallel.offload") == "optimizer"
        floor = least[cell["model"]] / (3 if hosted else 1)
        assert floor < planned["planned_bytes"] < 79e9  # they are meant to fit
        assert 0.01 < planned["planned_seconds"] < 1


def test_the_memory_of_layers_in_a_loop_is_what_the_compiler_of_tpus_said():
    every = read(ROOT / "results/plan_accuracy.jsonl")
    lines = [line for line in every if line["part"] == "limit"][::4]
    plans = [absent_plan(line) for line in lines]
    errors = [
        abs(planned["planned_bytes"] / found - 1)
        for planned, line in zip(plans, lines, strict=True)
        if (found := needed(line))  # of a program that is a little too large, none is told
    ]
    assert len(errors) >= 30
    assert statistics.median(errors) < 0.03 and max(errors) < 0.25
    agree = [p["planned_fits"] == x["fits"] for p, x in zip(plans, lines, strict=True)]
    assert statistics.mean(agree) > 0.9


def test_published_runs_of_the_named_sizes_are_predicted():
    for name, run in RUNS.items():
        billions = num_parameters(model_of(run, run.rows).params) / 1e9
        assert abs(billions / float(name[:-1]) - 1) < 0.05
    found = lines()
    errors = [abs(x["predicted"] / x["published"] - 1) for x in found if not x["fitted"]]
    assert len(found) == 24 and len(FITTED) <= 4
    assert statistics.median(errors) < 0.08 and max(errors) < 0.15


def test_regret_is_that_of_the_planned_choice():
    def line(plan: str, planned: float, *seconds: float) -> list[dict]:
        head = {"part": "timed", "shape": 0, "rate": 0.0, "plan": plan, "planned_k": 1}
        head |= {"planned_seconds": planned, "planned_sent": 1.0}
        return [head | {"time": i, "seconds": s} for i, s in enumerate(seconds)]

    # The plan takes the first, whose mean time is a quarter above that of the second.
    told = line("fsdp", 1.0, 1.25, 1.25) + line("zero1", 2.0, 1.0, 1.0)
    told += line("jit", 3.0, 3.0, 3.3)
    found = tables(told)
    assert "| 0 | no limit | 3 | 25% | fsdp | zero1 | 25.0% | 0.0% |" in "".join(
        " ".join(row.split()) for row in found["plan-regret"].splitlines()
    )
    # Three pairs, of 1.25 to 1.25, 1 to 1 and 3 to 3.3.
    assert "| the same measured twice, all | 3 | 0.0% |" in found["plan-time"]
    assert "not measured" in found["plan-compiled"]


def test_a_slow_link_carries_permutes_and_gathers_one_direction_after_the_other():
    own = Link(1e8, 2e-3)
    kinds = ("all-reduce", "reduce-scatter", "collective-permute", "all-gather")
    machine = nothing_known()._replace(inner=own, collectives=dict.fromkeys(kinds, own))
    assert limited(machine, 0.0) == machine
    found = limited(machine, 80.0)  # 10 MB/s, of which packets' heads take 52 in 9,000
    rate = 10e6 * 8948 / 9000
    expected = [rate, rate, rate / 2, rate / 1.5]
    assert [found.collectives[kind].bandwidth for kind in kinds] == expected
    assert found.inner == own._replace(bandwidth=rate)
    assert {link.latency for link in found.collectives.values()} == {2e-3}


def test_bytes_are_those_of_the_compiled_programs():
    """All collectives of arrays, as the ledger had them; sums of scalars do not count."""
    lines = read(ROOT / "results/plan_accuracy.jsonl")
    lines = [x for x in lines if x["part"] == "compiled"]
    assert {x["strategy"] for x in lines} >= set(MESHES) - {"tensor"}
    for line in lines:
        config = config_of(line)
        mesh, model = absent_mesh(config, 8), shape_model("compiled", line["shape"])
        own = config.parallel
        planned = own.row.sent_bytes(own, model.params, mesh, model.cut)
        numbers = (line["sent"] - planned) / 4
        tokens = model.rows * model.seq_len / batch_degree(mesh)
        # The loss of a vocabulary that is split sums three numbers for each token.
        split = 3 * tokens if "tensor" in mesh.shape else 0
        assert 0 < numbers - split <= 2 * MOST_SCALARS, line
