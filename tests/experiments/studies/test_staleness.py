"""Tuning by a search, and the tables of stale pushes and of uneven islands."""

import math

import pytest

from experiments.studies.asynchronous.rates import (
    best_place,
    next_place,
    place,
    rate_of,
    tune,
)
from experiments.studies.asynchronous.tables import islands_table, reached, speed_table
from experiments.studies.staleness.members import METHODS, PLAIN, pairs
from experiments.studies.staleness.tables import loss_table, won_table
from experiments.sweeps.results import read


def searched(loss, middle: int) -> dict[int, float]:
    losses: dict[int, float] = {}
    while (wanted := next_place(losses, middle)) is not None:
        assert wanted not in losses
        losses[wanted] = loss(wanted)
    return losses


def test_the_search_has_as_many_trials_for_all_and_goes_on_at_an_edge():
    for best in range(-9, 10):
        losses = searched(lambda at: (at - best) ** 2, 0)  # noqa: B023
        assert best_place(losses) == best and min(losses) < best < max(losses)
        assert len(losses) == max(5, abs(best) + 4) and set(losses) >= set(range(-2, 3))
    diverging = searched(lambda at: at if at < -3 else math.nan, 0)
    assert min(diverging) < best_place(diverging) or len(diverging) == 15
    assert len(searched(lambda at: -at, 0)) == 15  # there is no best
    assert [place(rate_of(at)) for at in range(-12, 5)] == [*range(-12, 5)]


def test_tuning_keeps_lines_and_takes_other_seeds_at_the_best(tmp_path):
    file, made = tmp_path / "lines.jsonl", []

    def head(rate, seed):
        return {"member": "a", "rate": rate, "seed": seed}

    def measure(head):
        made.append((place(head["rate"]), head["seed"]))
        return {"loss": abs(place(head["rate"]) - 1) + head["seed"] / 10}

    tune(file, head, measure, 0, 3)
    assert made == [(at, 0) for at in range(-2, 3)] + [(1, 1), (1, 2)]
    tune(file, head, measure, 0, 3)
    assert len(made) == 7 == len(read(file))


def test_tables_of_staleness_count_from_the_plain_fresh_run():
    losses = {0: 5.0, 1: 5.4, 2: 5.8}

    def line(method, staleness, rate, seed, loss, steps=300):
        return {
            "method": method, "staleness": staleness, "rate": rate, "seed": seed,
            "loss": loss, "steps": steps,
        }  # fmt: skip

    lines = [
        line(PLAIN, staleness, rate, 0, loss + extra)
        for staleness, loss in losses.items()
        for rate, extra in ((0.25, 0.1), (0.5, 0.0), (1.0, 0.2))
    ]
    lines += [line(PLAIN, 0, 0.5, 1, 5.2), line(PLAIN, 2, 1.0, 1, 1.0, steps=20)]
    lines += [line("no momentum", 2, rate, 0, 5.2 + rate) for rate in (0.125, 0.25)]
    table = loss_table(lines)
    assert "| plain | 5.1000 ± 1.2706 (rate 0.5) | 5.4000 (rate 0.5) |" in table
    assert "5.3250 (rate 0.125; an edge)" in table
    won = won_table(lines).splitlines()
    assert "| what staleness costs | +0.3000 | +0.7000 |" in won[2]
    # (5.8 - 5.325) / (5.8 - 5.1)
    assert won[-1].startswith("| no momentum |  | 68% |")
    assert loss_table([]) == won_table([]) == "Not measured yet."
    assert len(pairs()) == 5 * len(METHODS) - 3


def test_islands_are_compared_by_the_time_to_the_loss_of_sync():
    def line(member, rate, loss, now, curve):
        points = [dict(zip(("now", "loss"), each, strict=True)) for each in curve]
        return {
            "part": "islands", "member": member, "rate": rate, "seed": 0, "loss": loss,
            "now": now, "updates": 9, "steps": 100, "curve": points,
        }  # fmt: skip

    lines = [
        line("sync", rate, 4.0 + abs(rate - 0.5), 100.0, []) for rate in (0.25, 0.5, 1.0)
    ]
    curve = [(10.0, 6.0), (20.0, 4.5), (30.0, 3.5)]
    lines += [line("async", 0.25, 3.0, 40.0, curve), line("async", 0.125, 9.0, 40.0, curve)]
    rows = islands_table(lines).splitlines()[2:]
    assert rows[0] == "| sync | 1 | 0.5 | 4.0000 | 9 | 1 | 1 |"
    assert rows[1] == "| async | 1 | 0.25 (an edge) | 3.0000 | 9 | 0.4 | 0.25 |"
    assert reached([{"now": 1.0, "loss": 5.0}], 4.0) == math.inf
    assert reached([{"now": 1.0, "loss": 3.0}], 4.0) == pytest.approx(1.0)


def test_modes_are_compared_by_the_time_to_the_loss_of_sync():
    def line(mode, rate, loss, now, points, filled=0.5, floor=4.0):
        curve = [dict(zip(("now", "loss"), each, strict=True)) for each in points]
        return {
            "part": "speed", "mode": mode, "member": mode, "seed": 0, "steps": 100,
            "numbers_per_second": rate, "loss": loss, "now": now, "curve": curve,
            "most_filled": filled, "floor": floor,
        }  # fmt: skip

    lines = [
        line("sync", 1.0, 4.0, 100.0, [(50.0, 5.0)]),
        line("by speed", 3.0, 4.0, 34.0, [(17.0, 5.0)]),
        line("async", 3.2, 4.5, 31.0, [(15.0, 6.0)]),
        line("backup", 9.0, 1.0, 1.0, [], filled=1.1),  # computed for too long
        line("sync", 7.0, 1.0, 1.0, [], floor=2.0),  # steps of another length
    ]
    rows = [row.strip("| ").split(" | ") for row in speed_table(lines).splitlines()[2:]]
    assert [row[0] for row in rows] == ["sync", "by speed", "async"]
    assert [row[3:5] for row in rows] == [["1", "1"], ["3", "3.25"], ["3.2", "3.25"]]
    assert [row[-1] for row in rows] == ["1", "0.34", "not reached"]
    del lines[0]["curve"]
    assert speed_table(lines).splitlines()[2].endswith("| 4.0000 |  |")
