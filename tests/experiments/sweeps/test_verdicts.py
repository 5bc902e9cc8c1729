"""The answers of a report, on made-up runs whose answers are known."""

import numpy as np
import pytest

from experiments.sweeps.rows import Row, baseline
from experiments.sweeps.verdicts import (
    amdahl_serial_share,
    critical_batch,
    generalisation_verdict,
    quality_verdict,
    recommendation,
    time_verdict,
    tokens_to,
    utilisation,
)


def row(
    name="r", devices=1, rate=100.0, loss=3.0, batch=8, emulated=False, curve=(), **more
):
    summary = {
        "devices": devices, "emulated": emulated, "tokens_per_second": rate,
        "val_loss": loss, "val_perplexity": np.exp(loss), "shifted_loss": 4.0,
        "model_flops_per_token": 10.0, "device_kind": "cpu", "core_share": 0.5,
    }  # fmt: skip
    config = {"data.batch_size": batch, "data.seq_len": 1, "seed": 0}
    records = [{"split": "train", "step": 0, "loss": 2.5, "tokens": 0, "step_seconds": 1}]
    for step, (tokens, value) in enumerate(curve, 1):
        records.append({"split": "train", "step": step, "loss": 2.5, "tokens": tokens})
        records.append({"split": "eval", "step": step, "loss": value, "tokens": 99})
    return Row(name, config, summary | more, records)


@pytest.mark.parametrize("serial", [0.0, 0.05, 0.4, 1.0])
def test_amdahl_is_recovered(serial):
    degrees = np.array([1, 2, 4, 8])
    speed_ups = 1 / (serial + (1 - serial) / degrees)
    assert amdahl_serial_share(list(degrees), list(speed_ups)) == pytest.approx(serial)


def test_critical_batch_is_recovered():
    """Curves that fall linearly, so that batch B reaches loss 3 at 1000 (1 + B / 40)."""

    def curve(batch):
        needed = 1000 * (1 + batch / 40)
        return [(t, 5 - 2 * t / needed) for t in np.linspace(0, 1.5 * needed, 7)[1:]]

    rows = [row(batch=b, loss=3.0, curve=curve(b)) for b in (8, 16, 32, 64)]
    assert critical_batch(rows) == pytest.approx(40)
    assert critical_batch(rows[:2]) is None
    flat = [row(batch=b, loss=3.0, curve=curve(8)) for b in (8, 16, 32)]
    assert critical_batch(flat) is None or critical_batch(flat) > 1e6


def test_tokens_to_a_loss():
    run = row(curve=[(10, 5.0), (20, 4.0), (30, 3.0)])
    assert tokens_to(run, 3.5) == pytest.approx(25)
    assert tokens_to(run, 2.0) is None
    assert tokens_to(run, 6.0) is None  # somewhere before the first point


def test_time():
    one, two = row("one"), row("two", devices=2, rate=170.0)
    assert baseline(two, [one, two]) is one
    assert time_verdict(one, one) == "baseline"
    assert time_verdict(two, one).startswith("yes: 1.70 x as fast on 2 x the devices (85%")
    slow = row("slow", devices=2, rate=90.0)
    assert time_verdict(slow, one).startswith("no: 0.90 x")
    assert time_verdict(row(devices=2, emulated=True), one).startswith("cannot say")


def test_weak_scaling_has_a_baseline_of_another_batch():
    one, two = row("one", batch=8), row("two", devices=2, batch=16)
    assert baseline(two, [one, two]) is one
    assert baseline(one, [one, two]) is one


def test_quality():
    best, worse = row("best", loss=3.0), row("worse", loss=3.1)
    equal = row("equal", devices=2, loss=3.01)
    rows = [best, worse, equal]
    assert quality_verdict(best, rows, best).startswith("best")
    assert quality_verdict(worse, rows, worse).startswith("no, worse")
    assert quality_verdict(equal, rows, best).startswith("yes, equal")
    assert quality_verdict(row(devices=2, loss=2.8), rows, best).startswith("yes, better")


def test_generalisation():
    one = row()
    assert generalisation_verdict(row(devices=2), one).startswith("yes, equal")
    assert generalisation_verdict(row(devices=2, loss=3.2), one).startswith("no, worse")
    shifted = row(devices=2, shifted_loss=4.2)
    assert generalisation_verdict(shifted, one).startswith("no, worse")


def test_utilisation():
    assert utilisation(row(), limit=2000.0) == pytest.approx(0.5)
    on_gpus = row(devices=2, device_kind="H100")
    assert utilisation(on_gpus, limit=2000.0) == pytest.approx(0.25)
    assert utilisation(row(), None) is None


def test_recommended_degree_is_the_largest_useful_one():
    rows = [row("1"), row("2", devices=2, rate=180.0), row("4", devices=4, rate=210.0),
            row("8", devices=8, rate=220.0)]  # fmt: skip
    (said,) = [line for line in recommendation(rows) if line.startswith("Degree")]
    assert said.startswith("Degree: 4, ")
