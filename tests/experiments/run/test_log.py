import json
import math

import numpy as np
import pytest

from experiments.processes.messages import human
from experiments.run.log import Log, Spikes, keep_until, read_metrics
from experiments.run.summary import told_stragglers
from lm.metrics import perplexity
from parallel.balance.stragglers import STEPS
from parallel.readings import COMPUTE


def test_spikes_are_losses_far_above_the_recent_mean():
    usual = [3.0 + 0.01 * (i % 5) for i in range(50)]
    spikes = Spikes(6.0, usual)
    assert spikes.count == 0
    assert not spikes.add(3.05)
    assert spikes.add(4.0)
    assert not spikes.add(math.nan)
    assert spikes.count == 1
    early = Spikes(6.0, usual[:5])
    assert not early.add(100.0), "too few losses to know what is usual"
    assert not Spikes(0.0, usual).add(100.0), "0 switches it off"


def test_records_after_a_checkpoint_and_cut_lines_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    records = [{"split": "train", "step": s, "loss": s * 0.1} for s in range(1, 8)]
    text = "".join(json.dumps(r) + "\n" for r in records)
    file.write_text(text + '{"split": "train", "ste')
    assert len(read_metrics(file)) == 7
    assert [r["step"] for r in keep_until(file, 5)] == [1, 2, 3, 4, 5]
    assert file.read_text() == "".join(json.dumps(r) + "\n" for r in records[:5])


def test_numbers_for_people():
    assert [human(x) for x in (0, 12.34, 1234, 5e6, 7.1e9)] == [
        "0", "12.3", "1.23 k", "5 M", "7.1 G",
    ]  # fmt: skip
    assert math.isclose(perplexity(math.log(20)), 20)
    assert perplexity(1e4) == math.inf


def test_records_are_json_and_skipped_steps_are_counted_in_a_row(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    finite = [False, False, True, False]
    found = []
    with Log(tmp_path, 0, 4, 6.0, epochs=lambda step: step * 0.25, write=True) as log:
        for step, fine in enumerate(finite, 1):
            metrics = {
                "loss": 2.0 if fine else math.nan, "tokens": 1.0, "finite": fine,
                "grad_norm": 1.0 if fine else math.inf, "learning_rate": 0.1,
                "loss_scale": 1.0,
            }  # fmt: skip
            arrays = {name: np.asarray(value) for name, value in metrics.items()}
            found += [log.train(step, arrays, 0.0, 0.0)]
        found = [*found[1:], log.flush()]
    assert [skipped and skipped.in_a_row for skipped in found] == [1, 2, None, 1]
    assert found[0].reason == "the loss is nan"
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [r["loss"] for r in records] == [None, None, 2.0, None]
    assert [r["epochs"] for r in records] == [0.25, 0.5, 0.75, 1.0]


def test_a_weighted_loss_is_divided_by_the_weight(tmp_path):
    with Log(tmp_path, 0, 2, 6.0, epochs=lambda step: step * 0.25, write=True) as log:
        for step, weight in enumerate([0.5, 0.0], 1):
            metrics = {"loss": 2.0 * (weight > 0), "tokens": 4.0, "weight": weight}
            log.train(step, {n: np.asarray(x) for n, x in metrics.items()}, 0.0, 0.0)
        log.flush()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["loss"] for r in records] == [4.0, None]  # without weight there is no loss
    assert [r["mean_weight"] for r in records] == [0.125, 0.0]
    assert [r["tokens"] for r in records] == [4, 8] and not any(
        r["skipped"] for r in records
    )


def test_a_straggler_is_named_once_and_remembered_by_a_run_that_goes_on(tmp_path, capsys):
    def step(log, number, slow):
        metrics = {"tokens": np.asarray(4.0), COMPUTE: np.array([0.1, 0.1, slow])}
        log.train(number, metrics, 0.0, 0.0)

    told = "replica 2 straggles"
    with Log(tmp_path, 0, 40, 6.0, epochs=float, write=True) as log:
        for number in range(1, STEPS + 6):
            step(log, number, 0.3)
        log.flush()
    assert capsys.readouterr().err.count(told) == 1
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert records[0]["compute_seconds"] == pytest.approx([0.1, 0.1, 0.3])
    with Log(tmp_path, STEPS + 5, 40, 6.0, epochs=float, write=True) as log:
        assert log.watch.worst == pytest.approx({2: 3.0})
        step(log, STEPS + 6, 0.3)
        log.flush()
        fewer = {"tokens": np.asarray(4.0), COMPUTE: np.array([0.1, 0.3])}
        log.train(STEPS + 7, fewer, 0.0, 0.0)  # in a phase with other replicas
        log.flush()
        assert log.watch.worst == {} and len(log.watch.means_W) == 2
    assert told not in capsys.readouterr().err
    check_pushes(tmp_path, capsys)
    assert told_stragglers({"stragglers": {"2": 3.0}}).startswith("replica 2 up to 3.00 x")
    worker = {"stragglers": {"2": 3.0}, "workers": 4}
    assert told_stragglers(worker).startswith("worker 2 up to 3.00 x")
    assert told_stragglers({}) == told_stragglers({"stragglers": None}) == ""


def check_pushes(folder, capsys):
    """Pushes tell of one worker each; a run that goes on reads null for the others."""
    (folder / "metrics.jsonl").unlink()
    with Log(folder, 0, 40, 6.0, epochs=float, write=True) as log:
        for number in range(2 + STEPS):
            seconds = np.full(2, np.nan)
            seconds[number % 2] = (0.1, 0.4)[number % 2]
            metrics = {"tokens": 4.0, "number": number, COMPUTE: seconds}
            arrays = {name: np.asarray(x) for name, x in metrics.items()}
            log.train(number + 1, arrays, 0.0, 0.0)
        log.flush()
    assert capsys.readouterr().err.count("worker 1 straggles") == 1
    records = read_metrics(folder / "metrics.jsonl")
    assert records[0]["compute_seconds"] == [pytest.approx(0.1), None]
    with Log(folder, 2 + STEPS, 40, 6.0, epochs=float, write=True) as log:
        assert log.watch.worst == pytest.approx({1: 4.0})
