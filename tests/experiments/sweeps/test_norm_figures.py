"""What the pictures of traced norms show, on made-up runs."""

import pytest

from experiments.sweeps.norm_figures import (
    NORM_FIGURES,
    curve_looks,
    kind,
    layer_curve,
    look,
)
from experiments.sweeps.rows import Row

TRANSFORMER = {
    "model.activation": "relu", "model.init": "he", "model.residual": True,
    "model.norm": "rmsnorm", "optim.clip_norm": 1.0,
}  # fmt: skip


def row(records=(), **config) -> Row:
    records = [{"split": "train"} | record for record in records]
    return Row("r", TRANSFORMER | config, {}, records)


def test_a_curve_has_the_median_of_each_layer_in_order():
    steps = [
        {"grad_norm/layers/10": size, "grad_norm/layers/2": 2 * size, "grad_norm/head": 9.0}
        for size in (1.0, 5.0, 3.0)
    ]
    steps[0]["activation_rms/layers/2"] = 7.0
    assert layer_curve(row(steps), "grad_norm/") == [(3, 6.0), (11, 3.0)]


@pytest.mark.parametrize("lost", [0.0, None])  # None: not finite
def test_what_has_no_logarithm_is_left_out(lost):
    steps = [{"grad_norm/layers/0": lost, "grad_norm/layers/1": 2.0}]
    assert layer_curve(row(steps), "grad_norm/") == [(2, 2.0)]


@pytest.mark.parametrize(
    "config, name",
    [
        ({}, "transformer"),
        ({"model.residual": False}, "transformer without residual"),
        ({"model.norm": "none"}, "transformer without norm"),
        (
            {"model.residual": False, "model.norm": "none"},
            "transformer without residual and norm",
        ),
        ({"model.cell": "rnn"}, "plain RNN"),
    ],
)
def test_panels_are_kinds_of_models(config, name):
    assert kind(row(**config)) == name


def test_runs_that_differ_look_different():
    configs = [
        {},
        {"model.activation": "tanh"},
        {"model.init": "naive"},
        {"optim.clip_norm": 0.0},
    ]
    configs += [{"model.init": name} for name in ("xavier", "orthogonal", "gpt2")]
    looks = [look(row(**config)) for config in configs]
    assert all(looks.count(one) == 1 for one in looks)


def test_runs_that_differ_in_something_else_look_different_too():
    rows = [row(**{"seed": 0})._replace(name=f"rate={rate}") for rate in (1, 2, 3)]
    for each in rows:
        each.summary["devices"] = 1
    hows, handles = curve_looks([(each, [(1, 2.0), (2, 3.0)]) for each in rows])
    assert len({how["color"] for how in hows}) == 3
    assert [handle.get_label() for handle in handles] == ["rate=1", "rate=2", "rate=3"]


@pytest.mark.parametrize("figure", NORM_FIGURES)
def test_a_picture_of_runs_that_logged_norms_and_none_of_others(figure):
    _, draw = NORM_FIGURES[figure]
    assert draw([row([{"loss": 3.0}])]) is None
    traced = {"grad_norm/layers/0": 1.0, "activation_rms/layers/0": 2.0}
    assert draw([row([traced]), row()]).startswith(b"\x89PNG")
