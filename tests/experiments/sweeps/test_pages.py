"""Pages: a command replaces its tables and nothing else."""

import pytest

from experiments.sweeps.pages import check_names, fill, tables

PAGE = """# A page

<!-- table one -->

| old |

<!-- end -->
Between \\1.
<!-- table two -->
<!-- end -->
After.
"""


def test_only_the_named_table_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    fill(page, {"one": "| new \\1 <!-- x --> |\n|---|\n"})
    assert page.read_text() == PAGE.replace("| old |", "| new \\1 <!-- x --> |\n|---|")
    assert tables(page) == {"one": "| new \\1 <!-- x --> |\n|---|", "two": ""}
    fill(page, {"one": "| old |", "two": "| 2 |"})
    start = PAGE.replace("table two -->\n", "table two -->\n\n| 2 |\n\n")
    assert page.read_text() == start
    assert list(tmp_path.iterdir()) == [page]


def test_a_table_without_a_place_is_named_and_nothing_is_written(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    with pytest.raises(ValueError, match="no place for the table three"):
        fill(page, {"one": "| new |", "three": "| 3 |"})
    with pytest.raises(ValueError, match="no such page"):
        check_names(tmp_path / "other.md", {"one"})
    assert page.read_text() == PAGE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "<!-- end -->\nBetween",
            "Between",
        ),  # the first table would reach to the second's end
        ("table two", "table one"),
        ("<!-- end -->\nAfter", "After"),
        ("After", "<!-- end -->\nAfter"),
    ],
)
def test_markers_that_are_not_in_pairs_are_refused(tmp_path, old, new):
    page = tmp_path / "page.md"
    page.write_text(PAGE.replace(old, new))
    assert page.read_text() != PAGE
    with pytest.raises(ValueError, match="expected a line '<!-- end -->'"):
        fill(page, {"one": "| new |"})
