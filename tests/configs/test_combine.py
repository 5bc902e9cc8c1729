"""Sweeps as lists of members, and their names."""

import pytest

from configs.sweeps.combine import (
    at_tokens,
    degrees,
    distinct,
    each,
    names,
    product,
    zipped,
)


def test_product_varies_the_last_fastest():
    assert product(each("a", 1, 2), each("b", 3, 4)) == [
        {"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4},
    ]  # fmt: skip


def test_zipped_wants_equal_lengths():
    assert zipped(each("a", 1, 2), each("b", 3, 4)) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    with pytest.raises(ValueError):
        zipped(each("a", 1, 2), each("b", 3))


def test_names_tell_what_differs():
    fixed = [{"config": "c.py", "steps": 7}]
    members = product(fixed, degrees(1, 2), each("optim.learning_rate", 0.1, 0.2))
    assert names(members)[-1] == "devices=2,learning_rate=0.2"
    assert names(members[:1]) == ["base"]
    # Two fields whose last parts are the same keep their whole names.
    both = product(each("a.x", 1, 2), each("b.x", 1, 2))
    assert names(both)[1] == "a.x=1,b.x=2"


def test_same_member_twice_is_an_error():
    twice = each("a", 1) + each("b", 2) + each("a", 1)
    with pytest.raises(ValueError, match="twice"):
        names(twice)
    assert distinct(twice) == twice[:2]


def test_equal_tokens():
    members = at_tokens(64_000, each("data.batch_size", 5, 10, 20), seq_len=128)
    assert [m["steps"] * m["data.batch_size"] for m in members] == [500] * 3
    assert [m["eval_batches"] * m["data.batch_size"] for m in members] == [255, 250, 240]
