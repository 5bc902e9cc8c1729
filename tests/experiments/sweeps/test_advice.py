"""What a report recommends, on made-up runs whose answers are known."""

import numpy as np
import pytest

from experiments.run.noise_scale import WINDOW
from experiments.sweeps.advice import (
    critical_batch,
    degree_advice,
    growth_advice,
    growth_schedule,
    loss_advice,
    noise_scale,
    recommendation,
    why_not_yet,
)
from experiments.sweeps.rows import baselines
from tests.experiments.sweeps.made_up import row


def with_noise(scales, name="r", warmup=10, tokens_of_step=1, **more):
    """Make a run that logged these noise scales, one a step."""
    made = row(
        name, noise_scale=scales[-1], **more,
        config={"steps": len(scales), "optim.warmup_steps": warmup},
    )  # fmt: skip
    for step, scale in enumerate(scales, 1):
        record = {"split": "train", "step": step, "loss": 3.0}
        record["tokens"] = step * tokens_of_step
        made.records.append(record | {"noise_scale": scale})
    return made


def advice(rows):
    return recommendation(rows, baselines(rows))


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


def test_a_noise_scale_is_not_used_before_its_window_after_the_warm_up():
    enough = 10 + WINDOW
    short = with_noise([500.0] * (enough - 1), "short")
    assert str(enough - 1) in why_not_yet(short) and str(enough) in why_not_yet(short)
    assert why_not_yet(with_noise([500.0] * enough)) is None
    assert noise_scale([short]) is None


def test_a_noise_scale_is_used_below_the_bigram_loss_or_once_it_is_steady():
    growing = list(np.geomspace(100, 1000, 4 * WINDOW))
    learnt = with_noise(growing, loss=3.4)  # the bigram loss is 3.5
    assert why_not_yet(learnt) is None
    early = with_noise(growing, "early", loss=3.6)
    said = why_not_yet(early)
    assert "3.600" in said and "3.500" in said  # the losses, and how it changes
    assert "1 k" in said and f"{early.records[-1 - WINDOW]['noise_scale']:.0f}" in said
    assert why_not_yet(with_noise([900.0] * 4 * WINDOW, loss=3.6)) is None
    assert noise_scale([learnt, early]) == pytest.approx(1000)


def test_no_batch_size_is_recommended_too_early():
    hardly_begun = with_noise([1089.0] * 12, "begun", warmup=1, loss=6.797)
    (said,) = [line for line in advice([hardly_begun]) if line.startswith("Batch size")]
    assert "1089" not in said and "1.09 k" not in said
    assert "12 steps" in said and "51" in said
    (said,) = [line for line in advice([row()]) if line.startswith("Batch size")]
    assert "no run measured" in said


def test_a_batch_size_is_recommended_from_the_runs_that_are_far_enough():
    rows = [with_noise([scale] * 100, f"{scale}") for scale in (900.0, 1000.0, 1300.0)]
    rows.append(with_noise([7.0] * 20, "begun"))
    (said,) = [line for line in advice(rows) if line.startswith("Batch size")]
    assert "1,000 rows" in said and "3 of 4 runs" in said


def test_growth_is_proposed_where_the_noise_scale_passes_each_size_for_good():
    """Rows of one token in batches of 8; the noise scale is the number of the step."""
    climbing = [float(step) for step in range(1, 101)]
    # It is below 16, 32, 64 for the last time at steps 15, 31, 63: after 120, 248, 504
    # rows. The steps between them have 16 and 32 rows, and 296 rows are left.
    made = with_noise(climbing, tokens_of_step=8)
    expected = [(15, 16), (15 + 8, 32), (15 + 8 + 8, 64)]
    assert growth_schedule(made) == (expected, 31 + 5)
    # One low estimate late in the run puts off what it is below.
    climbing[79] = 20.0
    expected = [(15, 16), (15 + 33, 64)]
    assert growth_schedule(with_noise(climbing, tokens_of_step=8)) == (expected, 48 + 3)
    (said,) = growth_advice([made])
    assert "data.growth=((15, 16), (23, 32), (31, 64)) with steps=36" in said
    assert "64% fewer steps" in said
    assert growth_advice([with_noise([9.0] * 100, tokens_of_step=8)]) == []
    assert growth_advice([with_noise(climbing[:20], tokens_of_step=8)]) == []  # too early


def test_recommended_degree_is_the_largest_useful_one():
    rows = [row("1"), row("2", devices=2, rate=180.0), row("4", devices=4, rate=210.0),
            row("8", devices=8, rate=220.0)]  # fmt: skip
    said = degree_advice(rows, baselines(rows))
    assert said.startswith("Degree: 4 devices") and "2.10 times" in said
    assert "210 tokens/s against 100" in said


def test_the_degree_where_none_pays_or_none_was_asked():
    rows = [row("1"), row("2", devices=2, rate=99.0)]
    said = degree_advice(rows, baselines(rows))
    assert "smallest" in said and "99 tokens/s against 100" in said
    rows = [row("1"), row("2", devices=2, rate=99.0, emulated=True)]
    assert "emulated" in degree_advice(rows, baselines(rows))
    alone = [row("2", devices=2)]
    said = degree_advice(alone, baselines(alone))
    assert "emulated" not in said and "no two runs differ" in said


def test_losses_that_tie_are_not_the_lowest():
    names = "abcdefg"
    same = [row(name, loss=3.0 + 0.001 * i) for i, name in enumerate(names)]
    said = loss_advice(same)
    assert "all 7 runs tie" in said and "3.000 to 3.006" in said
    said = loss_advice([*same, row("worse", loss=3.2)])
    assert "7 of 8 runs tie" in said and "a, b, c, d and 3 more" in said
    said = loss_advice([row("best", loss=3.0), row("next", loss=3.1)])
    assert "best has the lowest, 3.000" in said and "next, has 3.100" in said


def test_losses_of_different_texts_are_not_compared():
    rows = [row("a", config={"fingerprint": "1"}), row("b", config={"fingerprint": "2"})]
    assert "not compared" in loss_advice(rows)
