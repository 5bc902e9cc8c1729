"""The verdicts of a report, on made-up runs whose answers are known."""

import math

import numpy as np
import pytest

from experiments.sweeps.rows import baselines, reached
from experiments.sweeps.verdicts import (
    amdahl_serial_share,
    generalisation_verdict,
    quality_verdict,
    time_verdict,
    utilisation,
    verdict,
)
from tests.experiments.sweeps.made_up import row


@pytest.mark.parametrize("serial", [0.0, 0.05, 0.4, 1.0])
def test_amdahl_is_recovered(serial):
    degrees = np.array([1, 2, 4, 8])
    speed_ups = 1 / (serial + (1 - serial) / degrees)
    assert amdahl_serial_share(list(degrees), list(speed_ups)) == pytest.approx(serial)


def test_the_first_x_at_which_a_curve_reaches_a_loss():
    curve = [(10, 5.0), (20, 4.0), (30, 3.0), (40, 3.5), (50, 2.9)]
    assert reached(curve, 3.5) == pytest.approx(25)
    assert reached(curve, 3.0) == 30
    assert reached(curve, 2.0) is None  # never
    assert reached(curve, 6.0) is None  # somewhere before the first point
    assert reached([], 3.0) is None


def test_time():
    one, two = row("one"), row("two", devices=2, rate=170.0)
    assert baselines([one, two]) == {"one": one, "two": one}
    assert "100 tokens/s" in time_verdict(one, one)
    said = time_verdict(two, one)
    assert said.startswith("Yes") and "1.70 times" in said and "85%" in said
    assert "170 tokens/s" in said and "100 on 1 device" in said  # both numbers
    slow = time_verdict(row("slow", devices=2, rate=90.0), one)
    assert slow.startswith("No:") and "0.90 times" in slow
    emulated = time_verdict(row(devices=2, rate=55.0, emulated=True), one)
    assert emulated.startswith("Not answered") and "emulated" in emulated
    assert "55 tokens/s against 100" in emulated


def test_a_speed_that_is_not_known_is_no_speed():
    lost, known = row("lost", rate=math.nan), row("known", devices=2)
    for one, base in [(lost, lost), (known, lost), (lost, known)]:
        assert time_verdict(one, base).startswith("Not measured")


def test_weak_scaling_has_a_baseline_of_another_batch():
    one, two = row("one", batch=8), row("two", devices=2, batch=16)
    assert baselines([one, two]) == {"one": one, "two": one}


def test_quality_names_ties_and_tells_both_losses():
    best, worse = row("best", loss=3.0), row("worse", loss=3.1)
    tie = row("tie", devices=2, loss=3.01)
    rows = [best, worse, tie]
    assert "lowest loss on 1 device: 3.000" in quality_verdict(best, rows, best)
    said = quality_verdict(worse, rows, worse)
    assert said.startswith("Worse") and "3.100" in said and "3.000 of best" in said
    assert "3.3%" in said
    said = quality_verdict(tie, rows, best)
    assert said.startswith("A tie") and "3.010" in said and "3.000" in said
    assert quality_verdict(row(devices=2, loss=2.8), rows, best).startswith("Better")
    also = row("also", loss=3.001)
    said = quality_verdict(best, [*rows, also], best)
    assert said.startswith("Tied with 1 more")
    assert quality_verdict(also, [*rows, also], also).startswith("A tie")


def test_a_run_that_blew_up_is_told_as_a_multiple():
    best, lost = row("best", loss=3.0), row("lost", loss=3.6e8)
    said = quality_verdict(lost, [best, lost], lost)
    assert said == "Worse: loss 360 M, 120 M times the 3.000 of best."


def test_losses_on_other_text_or_tokens_are_not_compared():
    ours = row("ours", loss=3.0, config={"fingerprint": "x"})
    other = row("other", loss=1.0, config={"fingerprint": "y"})
    assert "lowest loss on 1 device: 3.000" in quality_verdict(ours, [ours, other], ours)


def test_a_loss_that_is_not_finite_is_the_worst():
    best = row("best")
    for lost in (math.nan, math.inf):
        diverged = row("diverged", loss=lost)
        said = quality_verdict(diverged, [diverged, best], diverged)
        assert said.startswith("Worse") and "not finite" in said and "3.000" in said
    none = best._replace(name="none", summary=best.summary | {"val_loss": None})
    assert quality_verdict(none, [none, best], none).startswith("Worse")


def test_generalisation():
    one = row()
    assert generalisation_verdict(row(devices=2), one).startswith("Same")
    assert generalisation_verdict(row(devices=2, loss=3.2), one).startswith("Worse")
    shifted = generalisation_verdict(row(devices=2, shifted_loss=4.2), one)
    assert shifted.startswith("Worse") and "4.200 against 4.000" in shifted


def test_what_was_not_measured_is_said():
    """A model of counts has no training loss; a machine may not have been measured."""
    counted = row(shifted_loss=None)
    for record in counted.records:
        record["loss"] = None
    said = verdict(counted, [counted], counted, limit=None)
    assert "not measured" in said.generalisation.lower()
    assert "not measured" in said.utilisation


def test_utilisation():
    assert utilisation(row(), limit=2000.0) == pytest.approx(0.5)
    on_gpus = row(devices=2, device_kind="H100")
    assert utilisation(on_gpus, limit=2000.0) == pytest.approx(0.25)
    assert utilisation(row(), None) is None
