"""Law 5: a run that dies and goes on equals the run that never died."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import time

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from experiments.processes.children import Keeper, free_port
from tests.experiments.runs import (
    ROOT,
    command,
    losses,
    run,
    run_together,
    small,
    write_corpus,
)

# LOCKSTEP_KILLS=20 pytest tests/experiments/run/test_resume.py kills more often than CI.
KILLS = int(os.environ.get("LOCKSTEP_KILLS", "3"))
AT_THE_END = {"eval_every": 0, "save_every": 0}  # where steps alone are compared


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    write_corpus(folder / "corpus")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(folder):
    run("train", *small(folder), f"--workdir={folder}/whole", "--devices=8")
    return folder / "whole"


@pytest.fixture(scope="module")
def stopped(folder):
    """A run that was stopped at step 8, for each test to damage a copy of."""
    flags = [*small(folder, save_every=2), f"--workdir={folder}/stopped", "--devices=8"]
    run("train", *flags, "--stop_at=8")
    return folder / "stopped"


def final_arrays(workdir, step):
    """Read every array of a checkpoint by Orbax alone."""
    import jax

    parts = ocp.load_checkpointables(workdir / "checkpoints" / str(step))
    arrays = {name: parts[name] for name in ("params", "opt", "progress")}
    return [np.asarray(x) for x in jax.tree.leaves(arrays)]


def test_killed_at_random_instants_is_bitwise_equal(folder, monkeypatch):
    """Every step is saved, so that kills fall into saves as well."""
    monkeypatch.chdir(ROOT)
    rng = random.Random(KILLS)
    steps = 10 * KILLS
    flags = [*small(folder, save_every=1, eval_every=10, steps=steps), "--devices=8"]
    whole, killed = folder / "never-killed", folder / "killed"
    run("train", *flags, f"--workdir={whole}")
    kills = 0
    with (
        open(os.devnull, "ab") as nothing,
        contextlib.closing(Keeper("experiments.train", list, nothing)) as keeper,
    ):
        while kills < KILLS and not (killed / "summary.json").exists():
            child = keeper.begin([*flags, f"--workdir={killed}"], os.sched_getaffinity(0))
            while not child.pid and child.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(1, 3.5))
            assert child.poll() in (None, 0)
            kills += child.poll() is None
            child.kill()
            child.wait(60)
    assert kills > KILLS / 2, f"the run was complete after {kills} kills"
    run("train", *flags, f"--workdir={killed}")
    assert losses(killed) == losses(whole)
    assert losses(killed, "eval") == losses(whole, "eval")
    ours, theirs = final_arrays(killed, steps), final_arrays(whole, steps)
    assert len(ours) == len(theirs) > 10
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_degrees_and_strategies_continue_the_same_run(folder, uninterrupted):
    workdir = f"--workdir={folder}/moved"
    for devices, strategy, accumulation, stop_at in [
        (4, "fsdp", 2, 4),
        (1, "zero2", 4, 8),
        (2, "pmap", 1, 12),
    ]:
        overrides = AT_THE_END | {
            "parallel.strategy": strategy,
            "parallel.accumulation": accumulation,
        }
        run(
            "train", *small(folder, **overrides), workdir,
            f"--devices={devices}", f"--stop_at={stop_at}",
        )  # fmt: skip
    moved, whole = losses(folder / "moved"), losses(uninterrupted)
    assert moved.keys() == whole.keys()
    np.testing.assert_allclose(list(moved.values()), list(whole.values()), rtol=2e-6)


def test_a_complete_run_is_left_alone(folder, uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    again = run("train", *small(folder), f"--workdir={uninterrupted}", "--devices=8")
    assert "is complete" in again.stderr
    assert "validation loss" in again.stdout
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_a_complete_run_is_trained_on(folder, uninterrupted):
    """With a schedule whose end is given, as if it had always had so many steps."""
    workdir = folder / "longer"
    flags = [f"--workdir={workdir}", "--devices=8"]
    for steps in (6, 12):
        overrides = {"optim.decay_steps": 12, "steps": steps}
        said = run("train", *small(folder, **overrides), *flags).stderr
    assert "was to end at step 6 and now ends at 12; the learning rate stays" in said
    assert "going on from the checkpoint at step 6" in said
    assert losses(workdir) == losses(uninterrupted)
    for steps in (6, 12):
        name = f"summary-{steps}.json" if steps == 6 else "summary.json"
        summary = json.loads((workdir / name).read_text())
        assert summary["steps"] == steps
        assert summary["val_loss"] == losses(workdir, "eval")[steps]
    fewer = run("train", *small(folder, **overrides | {"steps": 8}), *flags, check=False)
    assert fewer.returncode == 2 and "has taken 12 steps" in fewer.stderr


def test_two_processes_train_as_one(folder, uninterrupted):
    run(
        "launch", "--processes=2", "--devices_per_process=4", "--",
        *small(folder, **AT_THE_END), f"--workdir={folder}/two",
    )  # fmt: skip
    two, whole = losses(folder / "two"), losses(uninterrupted)
    np.testing.assert_allclose(list(two.values()), list(whole.values()), rtol=2e-6)


def test_a_cluster_needs_no_launcher(folder, uninterrupted):
    """SLURM's variables are all that two tasks on one node are given."""
    flags = [*small(folder, **AT_THE_END), f"--workdir={folder}/slurm", "--devices=4"]
    job = {
        "SLURM_JOB_ID": str(free_port()),  # JAX derives its port from the job's number
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }
    ranks = [{"SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in ("0", "1")]
    first, _ = run_together([(command("train", *flags), job | rank) for rank in ranks])
    assert "in 2 process(es)" in first.stderr
    ours, whole = losses(folder / "slurm"), losses(uninterrupted)
    np.testing.assert_allclose(list(ours.values()), list(whole.values()), rtol=2e-6)


def test_a_dead_process_ends_the_others_promptly(folder):
    flags = small(folder, steps=5000, eval_every=0, save_every=0)
    launcher = subprocess.Popen(
        command(
            "launch", "--processes=2", "--", *flags, f"--workdir={folder}/dead"
        ),
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = folder / "dead" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size):
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    children = f"/proc/{launcher.pid}/task/{launcher.pid}/children"
    with open(children) as file:
        _, second = map(int, file.read().split())
    os.kill(second, 9)
    killed = time.monotonic()
    stderr = launcher.communicate(timeout=30)[1]
    assert time.monotonic() - killed < 15
    assert launcher.returncode == 1
    assert "process 1 of 2 was killed by SIGKILL" in stderr


@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped"])
def test_a_damaged_checkpoint_is_passed_over(folder, uninterrupted, stopped, damage):
    workdir = shutil.copytree(stopped, folder / damage)
    flags = [*small(folder), f"--workdir={workdir}", "--devices=8"]
    newest = workdir / "checkpoints" / "8" / "params"
    data = max(newest.rglob("d/*"), key=lambda file: file.stat().st_size)
    if damage == "missing":
        data.unlink()
    else:
        raw = bytearray(data.read_bytes())
        if damage == "truncated":
            raw = raw[: len(raw) // 2]
        else:
            raw[len(raw) // 2] ^= 0xFF
        data.write_bytes(raw)
    resumed = run("train", *flags)
    assert "the checkpoint at step 8 is damaged" in resumed.stderr
    assert "going on from the checkpoint at step 6" in resumed.stderr
    assert losses(workdir) == losses(uninterrupted)
    assert len(list((workdir / "checkpoints").glob("damaged-8-*"))) == 1


def test_without_a_whole_checkpoint_nothing_is_touched(folder, stopped):
    workdir = shutil.copytree(stopped, folder / "all-damaged")
    flags = [*small(folder), f"--workdir={workdir}", "--devices=8"]
    for data in (workdir / "checkpoints").rglob("d/*"):
        data.write_bytes(b"")
    before = sorted((workdir / "checkpoints").rglob("*"))
    refused = run("train", *flags, check=False)
    assert refused.returncode == 2
    assert "can be loaded" in refused.stderr and "Traceback" not in refused.stderr
    assert sorted((workdir / "checkpoints").rglob("*")) == before
    wrong = run("evaluate", f"--workdir={workdir}", check=False)
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr


def test_sigterm_saves_and_ends(folder, uninterrupted):
    workdir = folder / "terminated"
    flags = [*small(folder, save_every=0), f"--workdir={workdir}", "--devices=8"]
    process = subprocess.Popen(
        command("train", *flags), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    metrics = workdir / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 0
    assert "stopped at step" in stderr or losses(workdir).keys() >= {12}
    run("train", *flags)
    assert losses(workdir) == losses(uninterrupted)


PROCESSES = {
    "int8": {"exchange.codec": "int8", "strategy": "pmap"},
    "diloco": {"local.every": 3, "strategy": "diloco", "exchange.codec": "int4"},
}
# A replica is an island of two devices, of one process.
PROCESSES["islands"] = PROCESSES["diloco"] | {"slice": 2, "local.inner": "fsdp"}


@pytest.mark.parametrize("name", PROCESSES)
def test_processes_exchange_as_devices_do(folder, name):
    overrides = {f"parallel.{key}": value for key, value in PROCESSES[name].items()}
    local, own = name != "int8", 2 if name == "islands" else 1
    # Evaluated between two meetings, too.
    flags = small(folder, **overrides, eval_every=8, save_every=0)
    run("train", *flags, f"--workdir={folder}/devices-{name}", f"--devices={2 * own}")
    # Replicas that train apart are stopped between two meetings, and go on.
    for stop_at in (7, 12) if name == "diloco" else (12,):
        mine = [
            *flags, f"--stop_at={stop_at}", f"--workdir={folder}/processes-{name}",
            f"--devices={own}", f"--coordinator=127.0.0.1:{free_port()}",
            "--num_processes=2",
        ]  # fmt: skip
        run_together(
            [(command("train", *mine, f"--process_id={index}"), {}) for index in (0, 1)]
        )
    # Of DiLoCo's steps, the records are of the replicas of the process that writes.
    for split in ("eval",) if local else ("train", "eval"):
        ours = losses(folder / f"processes-{name}", split)
        theirs = losses(folder / f"devices-{name}", split)
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)
