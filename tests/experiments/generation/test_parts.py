"""One text in parts: what each way knows as it writes, by a writer that can be followed."""

import pytest

from experiments.generation.parts import body, write_in_parts, write_in_turn


def writer(calls: list[list[str]]):
    """Write heads f0, f1, ... and bodies that name the last head of what was read."""

    def write(texts: list[str], num_new: int) -> list[str]:
        calls.append(texts)
        return [answer(text) for text in texts]

    return write


def answer(text: str) -> str:
    last = text.rpartition("def ")[2]
    if last:  # a head is there
        return f"\n    return {last[:-3]!r}\n\nclass Next:\n    pass"
    return f"f{text.count('def ') - 1}():\n    return 0\n\n\nx = 1"


def test_parts_know_all_heads_before_them_and_no_other_body():
    calls: list[list[str]] = []
    text = write_in_parts(writer(calls), "import os", num_parts=3, num_new=9)
    assert text == "import os" + "".join(
        f"\n\n\ndef f{i}():\n    return 'f{i}'" for i in range(3)
    )
    # Three heads in turn, then all bodies in one call.
    assert [len(texts) for texts in calls] == [1, 1, 1, 3]
    assert calls[3][2] == (
        "import os\n\n\ndef f0():\n    ...\n\n\ndef f1():\n    ...\n\n\ndef f2():"
    )


def test_in_turn_every_part_knows_all_before_it():
    calls: list[list[str]] = []
    text = write_in_turn(writer(calls), "import os", num_parts=2, num_new=9)
    first = "import os\n\n\ndef f0():\n    return 0"
    assert text == f"{first}\n\n\ndef f1():\n    return 0"
    assert calls == [["import os\n\n\ndef "], [f"{first}\n\n\ndef "]]


@pytest.mark.parametrize(
    "written, kept",
    [
        ("a\n  b\n\n  c\nd", "a\n  b\n\n  c"),
        ("a", "a"),
        ("", ""),
        ("a\n\n\n", "a"),
        ("a\n\tb\n)\n", "a\n\tb"),
    ],
)
def test_a_body_ends_where_the_next_part_would_begin(written, kept):
    assert body(written) == kept
