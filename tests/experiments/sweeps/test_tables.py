"""Tables in Markdown: read back, they are what went in."""

import re

import numpy as np
import pytest
from scipy import stats

from experiments.sweeps.run_table import runs_table
from experiments.sweeps.tables import Table, digits, is_number, line, markdown, over_seeds
from tests.experiments.sweeps.made_up import row


def read_back(text: str) -> list[list[str]]:
    """Split a table at each `|` that is not escaped, without its second line."""
    lines = [re.split(r"(?<!\\)\|", each)[1:-1] for each in text.splitlines()]
    cells = [[cell.strip().replace(r"\|", "|") for cell in each] for each in lines]
    return [cells[0], *cells[2:]]


@pytest.mark.parametrize("padded", [False, True])
def test_cells_come_back(padded):
    head = ["a|b", "", "größe"]
    rows = [["1 | 2", "x", "-0.5"], ["", "|", "12 k"]]
    assert read_back(markdown(head, rows, padded)) == [head, *rows]
    broken = markdown(["a"], [["one\ntwo\r\nthree\u2028four"]])
    assert read_back(broken) == [["a"], ["one two three four"]]


def test_a_table_can_grow_line_by_line():
    rows = [["x", 1], ["y", 2.5]]
    grown = "\n".join([markdown(["", "n"], []), *map(line, rows)])
    assert read_back(grown) == read_back(markdown(["", "n"], rows))


def test_columns_of_numbers_are_aligned_to_the_right():
    rows = [["a", "1.5 k", "1", "2 emulated"], ["b", "", "x", "1"]]
    for padded in (False, True):
        rule = markdown("abcd", rows, padded).splitlines()[1]
        assert [cell[-1] for cell in rule.strip("|").split("|")] == ["-", ":", "-", ":"]
    lengths = {len(each) for each in markdown("abcd", rows, padded=True).splitlines()}
    assert len(lengths) == 1


def test_numbers():
    for cell in (
        "0 B", "144 MB", "3.1e-07", "-0.5", "98%", "+0.12%", "+2.1% ± 3.5%", "**4.5**",
        "12,345",
    ):  # fmt: skip
        assert is_number(cell), cell
    for cell in ("", "a 1", "1/2", "not finite", "v1", "."):
        assert not is_number(cell), cell
    shown = {3.0: "3.000", 0.012345: "0.01235", 895.14: "895.1", 12345.0: "12.3 k"}
    assert {number: digits(number) for number in shown} == shown
    assert digits(float("nan")) == digits(float("inf")) == "not finite"


def test_the_best_cells_are_marked():
    table = Table("t", "", ["a", "b"], [["1", "2"], ["3", "4"]], frozenset({(1, 0)}))
    assert read_back(table.markdown())[1:] == [["1", "2"], ["**3**", "4"]]


def columns(table: Table) -> dict[str, list[str]]:
    """Return the column of each name, marked cells with a star before them."""
    return {
        name: [
            "*" * ((i, j) in table.best) + cells[j] for i, cells in enumerate(table.rows)
        ]
        for j, name in enumerate(table.head)
    }


def test_only_fields_that_differ_are_columns():
    rows = [
        row("a", config={"optim.rate": 0.1, "eval_every": 1, "model.width": 64}),
        row("b", config={"optim.rate": 0.1000001, "eval_every": 2, "model.order": 3}),
    ]
    found = columns(runs_table(rows))
    assert found["rate"] == ["0.1", "0.1000001"]
    assert found["width"] == ["64", ""] and found["order"] == ["", "3"]
    assert not {"eval_every", "batch_size", "steps", "devices"} & found.keys()


def test_a_field_that_says_the_same_as_the_devices_is_left_out():
    found = columns(runs_table([row("a"), row("b", devices=2, emulated=True)]))
    assert found["devices"] == ["1", "2 emulated"] and "data" not in found


def test_fields_of_one_last_name_keep_their_whole_name():
    one, two = {"optim.name": "x", "data.name": "y"}, {"optim.name": "u", "data.name": "v"}
    found = columns(runs_table([row("a", config=one), row("b", config=two)]))
    assert found["optim.name"] == ["x", "u"] and found["data.name"] == ["y", "v"]


def test_the_best_of_each_result_and_its_ties_are_marked():
    rows = [
        row("a", loss=3.0, rate=100.0, sent_bytes=5.0),
        row("b", loss=3.01, rate=200.0, sent_bytes=5.0),
        row("c", loss=3.1, rate=500.0, sent_bytes=5.0, emulated=True),
    ]
    found = columns(runs_table(rows))
    assert found["loss"] == ["*3.000", "*3.010", "3.100"]
    assert found["tokens/s"] == ["100", "*200", "500"]  # emulated devices have no speed
    assert found["sent"] == ["5 B", "5 B", "5 B"]  # all are the best


def test_losses_of_different_texts_have_no_best():
    rows = [
        row("a", loss=1.0, config={"fingerprint": "x"}),
        row("b", loss=2.0, config={"fingerprint": "y"}),
    ]
    table = runs_table(rows)
    assert columns(table)["loss"] == ["1.000", "2.000"]
    assert "do not compare" in table.note


def test_what_was_not_measured_is_no_column_but_said():
    table = runs_table([row("a", epochs=4.25), row("b", epochs=None)])
    assert columns(table)["epochs"] == ["4.25", ""]
    assert "noise scale" not in table.head and "FLOP share" not in table.head
    said = table.note.partition("Not measured")[2]
    assert "noise scale" in said and "FLOP share" in said and "epochs" not in said
    assert {name for name, _ in table.meanings} == set(table.head) - {"run"}


def test_a_loss_has_its_interval_beside_it():
    rows = [row("a", loss_interval=[2.5, 3.75]), row("b", loss_interval=None)]
    assert columns(runs_table(rows))["loss ±"] == ["0.6250", ""]
    assert "loss ±" not in columns(runs_table([row("a"), row("b")]))


def test_the_mean_over_seeds_has_the_interval_of_students_t():
    values = [3.02, 2.97, 3.11, 3.05]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert over_seeds(values) == f"3.0375 ± {(high - low) / 2:.4f}"
    assert over_seeds([0.01, 0.03], "+.1%") == "+2.0% ± 12.7%"
    assert over_seeds([3.0]) == "3.0000"  # nothing is known of its spread
