"""Runs whose strategy and degree change on the way, against the run that never changed."""

import contextlib
import dataclasses
import json
import os
import pickle
from dataclasses import replace

import jax
import numpy as np
import pytest

from configs import fields
from configs.base import Experiment
from experiments.planning.out_of_memory import next_command, settled
from experiments.run import loop
from experiments.run.check import check_phases
from experiments.run.phases.account import by_phase
from experiments.run.phases.builder import Builder
from experiments.run.phases.driver import train_phases
from experiments.run.phases.phase import phases_of
from experiments.run.startup import check_override_names, numbers_for_words
from experiments.run.survival.clock import Clock
from experiments.run.survival.injection import largest_file
from experiments.run.workdir import differences, saved_steps
from lm.data.config import DataConfig
from lm.data.prepare import prepare
from lm.models.transformer.config import TransformerConfig
from lm.optim import OptimConfig, schedule
from lm.precision import PrecisionConfig
from lm.robust import RobustConfig
from parallel.config import ParallelConfig, PhaseConfig
from parallel.exchange.config import ExchangeConfig
from parallel.local import LocalConfig
from parallel.server.config import ServerConfig
from tests.experiments.run.test_resume import final_arrays
from tests.experiments.runs import losses, run, write_corpus

SYNC = {"strategy": "parameter_server", "data": 1, "server": ServerConfig(workers=2)}
ASYNC = SYNC | {"server": ServerConfig(mode="async", workers=3, slow=(1, 1, 2.5))}


class Runs:
    """Trains configs in folders of their own, on the same data."""

    def __init__(self, folder):
        self.folder = folder
        self.config = Experiment(
            steps=16, eval_every=0, eval_batches=1, save_every=7, keep=4,
            data=DataConfig(
                source="text", path=str(write_corpus(folder / "corpus", 8)),
                cache=str(folder / "cache"), vocab_size=257, seq_len=16, batch_size=8,
            ),
            model=TransformerConfig(width=16, num_layers=1, num_heads=2, dropout=0.1),
            optim=OptimConfig(learning_rate=0.01, warmup_steps=2),
        )  # fmt: skip
        self.data = prepare(self.config.data)
        self.held = []  # bytes of arrays on the devices when a phase is built

    def train(self, name, config):
        workdir, phases = self.folder / name, phases_of(config)
        workdir.mkdir(exist_ok=True)
        meshes = [phase.config.parallel.mesh() for phase in phases]
        builder = Builder(workdir, self.data, Clock(), meshes, [None] * len(phases))

        def begin(phase):
            self.held.append(sum(x.nbytes for x in jax.live_arrays()))
            return builder(phase)

        train_phases(phases, workdir, begin)
        return workdir

    def command(self, name, config):
        """Train by the command, in a process of its own."""
        (self.folder / "config.pickle").write_bytes(pickle.dumps(config))
        file = self.folder / "config.py"
        file.write_text(
            "import pathlib, pickle\n"
            "def get_config():\n"
            "    file = pathlib.Path(__file__).with_suffix('.pickle')\n"
            "    return pickle.loads(file.read_bytes())\n"
        )
        workdir = self.folder / name
        run("train", f"--config={file}", f"--workdir={workdir}", "--devices=8")
        return workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        # The block at the end takes seconds, and one run of the command writes it.
        patched.setattr(loop, "finish", lambda *given: None)
        yield Runs(tmp_path_factory.mktemp("phases"))


@pytest.fixture(scope="module")
def whole(runs):
    """A run that never changes."""
    config = replace(runs.config, parallel=ParallelConfig(strategy="jit", data=4))
    return runs.train("whole", config)


def records(workdir, split="train"):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]


def column(workdir, name):
    """Return a figure of each step; NaN where there is none yet."""
    return np.array([record[name] for record in records(workdir)], float)


def assert_same_bits(ours, theirs, step):
    for a, b in zip(final_arrays(ours, step), final_arrays(theirs, step), strict=True):
        np.testing.assert_array_equal(a, b)


# Orbax leaves reads of a damaged checkpoint unawaited (startup.quiet_readers).
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_2_then_8_then_4_devices_equal_the_run_that_never_changed(
    runs, whole, capsys, monkeypatch
):
    """So does a run that is stopped at a border, and goes on in the middle of a phase."""
    later = (
        PhaseConfig(after=4, strategy="fsdp", data=8),
        PhaseConfig(after=10, strategy="zero1", data=4, accumulation=2),
    )
    parallel = ParallelConfig(strategy="shard_map", data=2, phases=later)
    config = replace(runs.config, parallel=parallel)
    changed = runs.train("changed", config)
    for name in ("loss", "learning_rate", "tokens"):
        np.testing.assert_allclose(column(changed, name), column(whole, name), rtol=2e-5)
    # Of no phase is anything left on the devices when the next one is built.
    assert max(runs.held) - min(runs.held) < 1000, runs.held

    with monkeypatch.context() as patched:
        signal = contextlib.nullcontext(lambda step: step == 10)
        patched.setattr(loop, "stop_signal", lambda: signal)
        dying = runs.train("dying", config)
    assert saved_steps(dying) == [4, 7, 10]
    # The checkpoint of the border is damaged: the run goes on in the phase before it.
    file = largest_file(dying)
    os.truncate(file, file.stat().st_size // 2)
    capsys.readouterr()
    runs.train("dying", config)
    said = capsys.readouterr().err
    assert "step 10 is damaged" in said and "from the checkpoint at step 7" in said
    begun = [line[:10] for line in said.splitlines() if line.startswith("phase ")]
    assert begun == ["phase 3 of", "phase 2 of", "phase 3 of"]
    assert losses(dying) == losses(changed)
    assert_same_bits(dying, changed, 16)


def test_one_phase_is_no_phases(runs):
    """Bitwise, with all that a run can keep: residuals, loss scale, plateau, estimates."""
    spread = {
        "strategy": "shard_map", "data": 4, "accumulation": 2,
        "exchange": ExchangeConfig(codec="int8"),
    }  # fmt: skip
    optim = replace(
        runs.config.optim, schedule="plateau", window=1, patience=1, warmup_steps=1
    )
    config = replace(
        runs.config, steps=8, optim=optim, parallel=ParallelConfig(**spread),
        precision=PrecisionConfig(compute="float16", growth_interval=3),
        robust=RobustConfig(weights="huber", settle=2),
    )  # fmt: skip
    plain = runs.train("plain", config)
    parallel = replace(config.parallel, phases=(PhaseConfig(after=4, **spread),))
    phased = runs.command("phased", replace(config, parallel=parallel))
    for name in ("loss", "learning_rate", "loss_scale", "row_loss_median", "grad_norm"):
        np.testing.assert_array_equal(column(phased, name), column(plain, name))
    assert len(set(column(plain, "loss_scale"))) > 1
    assert_same_bits(phased, plain, 8)
    first, second = json.loads((phased / "summary.json").read_text())["phases"]
    assert (first["steps"], second["steps"]) == ([1, 4], [5, 8])
    assert first["tokens"] + second["tokens"] == column(plain, "tokens")[-1]


def test_fewer_meetings_and_servers_take_turns_with_synchronous_steps(runs, whole, capsys):
    later = (
        PhaseConfig(after=2, **SYNC),
        PhaseConfig(after=4, strategy="jit", data=4),
        PhaseConfig(after=6, **ASYNC),
        PhaseConfig(after=10, strategy="jit", data=4),
        PhaseConfig(after=12, strategy="local_sgd", data=2, local=LocalConfig(every=2)),
        PhaseConfig(after=15, strategy="jit", data=4),
    )
    parallel = ParallelConfig(strategy="jit", data=4, phases=later)
    hybrid = runs.train("hybrid", replace(runs.config, parallel=parallel))
    ours, theirs = column(hybrid, "loss"), column(whole, "loss")
    # A server in the mode sync is exact, so nothing may differ up to the phase after it.
    np.testing.assert_allclose(ours[:6], theirs[:6], rtol=2e-5)
    # The rate follows the step of the whole run, whatever takes it.
    rate = schedule(runs.config.optim, runs.config.steps)
    expected = [float(rate(step)) for step in range(runs.config.steps)]
    np.testing.assert_allclose(column(hybrid, "learning_rate"), expected, rtol=1e-5)
    # Workers push each number of their phases once, and none of another phase.
    pushes = [json.loads(line) for line in (hybrid / "schedule.jsonl").open()]
    alone = sorted(line["number"] for line in pushes if line["update"] > 6)
    assert alone == [6, 7, 8, 9]
    assert max(record.get("staleness", 0) for record in records(hybrid)) > 0
    # No jump: late gradients and averages move the loss by less than the steps do.
    assert np.abs(ours - theirs).max() < 0.5 * (theirs[0] - theirs[-1]), ours - theirs
    said = capsys.readouterr().err.splitlines()
    lost = [line.split("at step ")[1].split()[0] for line in said if "not taken" in line]
    assert lost == ["4", "10", "15"]


SECOND = "parallel.phases[0] (phase 2 of 2, steps 4 to 9): "
BAD = [  # the later phases -> what the error says
    ([{"after": 0}], "parallel.phases[0].after is 0; it must be at least 1"),
    ([{"after": 5}, {"after": 5}], "phases[1] begins after 5 steps, but the phase before"),
    ([{"after": 9}], "phases[0] begins after 9 steps, but the run has 9; leave"),
    ([{"strategy": "fdsp"}], "phases[0].strategy is 'fdsp'; choose one of jit, pmap"),
    (
        [{"data": 3}],
        SECOND + "parallel.data 3: they multiply to 3, but there are 8 cpu dev",
    ),
    ([{"data": 16}], SECOND + "parallel.data 16: they multiply to 16, but there are 8"),
    ([{"accumulation": 2}], "8 is not divisible by data degree 8 x accumulation 2 = 16"),
    ([{"accumulation": 0}], SECOND + "parallel.accumulation is auto"),
    ([{"strategy": "tensor", "tensor": 8}], SECOND + "model.num_heads 2 is not divisible"),
    ([{"strategy": "1f1b", "stage": 2}], SECOND + "model.num_layers 1 is not divisible by"),
    ([SYNC | {"server": ServerConfig(shards=99)}], SECOND + "parallel.server.shards 99 is"),
    (
        [{"strategy": "shard_map", "exchange": ExchangeConfig(codec="int8", rank=2)}],
        "phases[0].exchange.rank is 2, but it has no effect where parallel.phases[0].exch",
    ),
    (
        [{"strategy": "fsdp", "local": LocalConfig(every=2)}],
        "phases[0].local.every is 2, but it has no effect where parallel.phases[0].strat",
    ),
    ([{"strategy": "diloco"}], SECOND + "robust.weights is 'huber', but it has no effect"),
    ([{"strategy": "async_diloco"}], "'async_diloco' cannot be one of several phases"),
]


def test_bad_phases_are_refused_before_anything_is_allocated(runs, monkeypatch):
    before = sum(x.nbytes for x in jax.live_arrays())
    for phases, words in BAD:
        later = tuple(PhaseConfig(**{"after": 3} | each) for each in phases)
        config = replace(
            runs.config,
            steps=9,
            parallel=ParallelConfig(data=2, phases=later),
            robust=RobustConfig(weights="huber" if "huber" in words else "none"),
        )
        with pytest.raises(ValueError) as error:
            check_phases(config)
        assert words in str(error.value) and "\n" not in str(error.value)
    assert sum(x.nbytes for x in jax.live_arrays()) == before
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    parallel = ParallelConfig(data=8, phases=(PhaseConfig(after=3, data=1),))
    with pytest.raises(ValueError, match="parallel.data 1: .* but 2 processes hold 8 dev"):
        check_phases(replace(runs.config, parallel=parallel))


def test_a_phase_has_the_batches_of_its_steps(runs):
    """A batch may grow with the devices; each phase is checked with its own batches."""
    data = replace(runs.config.data, growth=((4, 12), (7, 24)))
    phases = (PhaseConfig(after=4, data=4), PhaseConfig(after=6, data=2))
    parallel = ParallelConfig(data=8, phases=phases)
    config = replace(runs.config, data=data, parallel=parallel)
    assert [phase.batch_sizes for phase in phases_of(config)] == [[8], [12], [12, 24]]
    check_phases(config)
    phases[0].after = 5
    with pytest.raises(ValueError, match="a batch of 12 is not divisible by data degree 8"):
        check_phases(config)


def test_phases_are_values_of_a_config(runs):
    """They are saved and read back, set by flags, and may change when a run goes on."""
    phases = (PhaseConfig(after=4, strategy="diloco", data=4, accumulation=0),)
    config = replace(runs.config, parallel=ParallelConfig(data=8, phases=phases))
    written = json.loads(json.dumps(dataclasses.asdict(config.parallel)))
    assert fields.from_dict(ParallelConfig, written) == config.parallel
    # What a field of a phase depends on is of the same phase.
    own = "parallel.phases[0]."
    within = [each for each in fields.walk(config) if each.name.startswith(own)]
    assert len(within) > 40
    assert all(name.startswith(own) for each in within for name in each.only)
    with pytest.raises(ValueError, match=r"such as --config.parallel.phases\[0\].after"):
        check_override_names(["train", "--config.parallel.phases=()"], config)
    name = own + "accumulation"
    assert numbers_for_words([f"--config.{name}=auto"], config) == [f"--config.{name}=0"]
    found = settled(config)
    assert found.parallel.phases[0].accumulation == 1 and not phases[0].accumulation
    later = phases_of(found)[1]
    assert next_command([f"--config.{name}", "1"], later, 4) == [f"--config.{name}=2"]
    for changes, differing in [
        ({"after": 7, "data": 2}, 0),
        ({"strategy": "fsdp", "exchange": ExchangeConfig(codec="int8")}, 0),
        ({"local": LocalConfig(every=7)}, 1),
    ]:
        other = (replace(phases[0], **changes),)
        parallel = replace(config.parallel, phases=other)
        lines = differences(config, replace(config, parallel=parallel))
        assert len(lines) == differing, lines


def test_the_figures_of_each_phase():
    parallel = ParallelConfig(data=8, phases=(PhaseConfig(after=2, data=4),))
    phases = phases_of(Experiment(steps=5, parallel=parallel))
    records = [
        {"step": s, "tokens": 10 * s, "step_seconds": s / 4, "tokens_per_second": 40 / s}
        for s in (1, 2, 3, 5)  # the record of step 4 was lost
    ]
    first, second = by_phase(records, phases)
    assert (first["seconds"], first["tokens"]) == (0.75, 20)
    assert (second["seconds"], second["tokens"]) == (2.0, 30)
    assert [first["devices"], second["devices"]] == [8, 4]
    assert first["tokens_per_second"] == 30.0
    assert by_phase([], phases)[1]["tokens_per_second"] is None
