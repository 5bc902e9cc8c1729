"""Train every member of a sweep, each in processes of its own.

python -m experiments.sweep --sweep=configs/sweeps/degree_batch.py --workdir=runs/sweep
    [--only='devices=8,*' --only='*batch_size=32*'] [--dry_run] [--executor=slurm]

A sweep is a Python file whose get_sweep() returns a list of dicts of overrides
(configs/sweeps/combine.py). Each member trains in a folder of its own in the workdir, whose
name tells the member's overrides. The same command again skips complete members and
continues the others. When a member fails, the others still run. The command ends with a
table of losses and errors; `python -m experiments.report runs/sweep` makes the report.

On a cluster, --executor=slurm hands the members to SLURM through submitit. Ask for what
each member needs with --slurm='partition=gpu,gpus_per_node=8,time=60'.
"""

import contextlib
import fnmatch
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
from typing import Any

import filelock
from absl import flags

from configs.base import Experiment
from experiments.processes.files import write_whole
from experiments.processes.messages import human, say, user_errors
from experiments.run import startup
from experiments.run.summary import read_summary
from experiments.sweeps.executors import run_local, run_slurm, slurm_executor
from experiments.sweeps.members import (
    Sweep,
    command,
    load_sweep,
    member_config,
    total_tokens,
)

WORKDIR = startup.define_workdir()
SWEEP = flags.DEFINE_string(
    "sweep", None, "Sweep file, such as configs/sweeps/degree_batch.py."
)
ONLY = flags.DEFINE_multi_string(
    "only", ["*"], "Names of members to run; * stands for any text."
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print each member's memory and bytes on the wire; train nothing."
)
EXECUTOR = flags.DEFINE_enum(
    "executor", "local", ["local", "slurm"], "What runs the members."
)
SLURM = flags.DEFINE_list(
    "slurm", [], "NAME=VALUE, ... of SLURM (submitit's slurm_NAME); for --executor=slurm."
)


def dry_run(sweep: Sweep, configs: dict[str, Experiment], folder: pathlib.Path) -> None:
    print(f"{'tokens':>8} {'peak a device':>14} {'sent a step':>12}  member")
    for name, member in sweep.items():
        single = {
            **member,
            "processes": 1,
            "cores": 0,
        }  # the same devices, emulated in one process
        result = subprocess.run(
            command(single, folder / name, "--dry_run"),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        lines = result.stdout.splitlines()
        peak = next((x.split()[-2:] for x in lines if x.startswith("peak")), ["failed"])
        sent = [x for x in lines if "a step and device" in x]
        sizes = " + ".join(re.search(r"([\d.]+ ?\w*) a step", x)[1] for x in sent) or "0 B"
        tokens = human(total_tokens(configs[name]))
        print(f"{tokens:>8} {' '.join(peak):>14} {sizes:>12}  {name}", flush=True)
        if result.returncode:
            print((result.stderr.strip() or "it was killed").splitlines()[-1])


def describe_machine(folder: pathlib.Path) -> None:
    """Write machine.json.

    Another process measures, because this one must hold no device. Each start measures the
    limit again and the largest is kept, because other work only lowers it.
    """
    file = folder / "machine.json"
    result = subprocess.run(
        [sys.executable, "-m", "experiments.studies.machine"],
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    if result.returncode:
        return
    found = json.loads(result.stdout.strip().splitlines()[-1])
    with contextlib.suppress(OSError, ValueError, KeyError):  # none yet, or damaged
        known = json.loads(file.read_text(encoding="utf-8"))
        found["product_limit"] = max(found["product_limit"], known["product_limit"])
    write_whole(file, json.dumps(found) + "\n")


def print_table(sweep: Sweep, folder: pathlib.Path) -> None:
    print(f"\n{'loss':>8} {'tokens/s':>9}  member")
    for name in sweep:
        error = folder / f"{name}.error"
        if summary := read_summary(folder / name):
            rate = human(summary["tokens_per_second"])
            print(f"{summary['val_loss']:8.4f} {rate:>9}  {name}")
        elif error.exists():
            why = error.read_text(encoding="utf-8").strip()
            print(f"{'failed':>8} {'':>9}  {name}: {why}")
        else:
            print(f"{'stopped':>8} {'':>9}  {name}")


def own(folder: pathlib.Path) -> filelock.FileLock:
    """Lock the sweep's folder; ValueError if another sweep uses it, or it holds none."""
    others = set(os.listdir(folder)) - {"lock"} if folder.exists() else set()
    if others and "sweep.json" not in others:
        raise ValueError(
            f"{folder} is not empty and holds no sweep.json, so it is not a sweep's "
            "folder; give another --workdir"
        )
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / "lock", timeout=1)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ValueError(
            f"{folder} is in use by another sweep; give another --workdir"
        ) from None
    return lock


def record(sweep: Sweep, folder: pathlib.Path) -> None:
    """Write the members to sweep.json, beside those of earlier commands.

    ValueError if an earlier member of the same name had other overrides.
    """
    file = folder / "sweep.json"
    known = read_members(file)
    for name, member in sweep.items():
        if known.get(name, member) != member:
            raise ValueError(
                f"{folder} holds another sweep: its member {name} was {known[name]}, "
                f"and is {member} in --sweep={SWEEP.value}; give another --workdir"
            )
    write_whole(file, json.dumps(known | sweep, indent=1) + "\n")


def read_members(file: pathlib.Path) -> Sweep:
    """Return the members of earlier commands; ValueError if the file is damaged."""
    try:
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError as error:  # text that is not UTF-8 raises one, too
        raise ValueError(f"{file} is damaged ({error}); give another --workdir") from None
    if not isinstance(known, dict):
        raise ValueError(f"{file} is damaged (no object); give another --workdir")
    return known


def chosen(sweep: Sweep, patterns: list[str]) -> Sweep:
    for pattern in patterns:
        if not fnmatch.filter(sweep, pattern):
            raise ValueError(
                f"--only={pattern} matches none of the members: {'; '.join(sweep)}"
            )
    return {
        name: member
        for name, member in sweep.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


def slurm_asked_for(folder: pathlib.Path) -> Any:
    """Return the executor of --executor=slurm; ValueError for what it cannot do."""
    if EXECUTOR.value == "slurm":
        return slurm_executor(folder, SLURM.value)
    if SLURM.value:
        raise ValueError(f"--slurm={','.join(SLURM.value)} needs --executor=slurm")
    return None


def stop(number: int, frame) -> None:
    raise KeyboardInterrupt


def main() -> None:
    with user_errors():
        folder = startup.workdir(WORKDIR)
        sweep = chosen(load_sweep(SWEEP.value), ONLY.value)
        configs = {name: member_config(name, member) for name, member in sweep.items()}
        if DRY_RUN.value:
            dry_run(sweep, configs, folder)
            return
        slurm = slurm_asked_for(folder)
        for name in sweep:
            read_summary(folder / name)  # a damaged one is an error before any run
        lock = own(folder)
        record(sweep, folder)
    signal.signal(signal.SIGTERM, stop)
    try:
        with user_errors(OSError):  # a full disk, or a folder that was taken away
            describe_machine(folder)
            if slurm:
                run_slurm(sweep, folder, slurm)
            else:
                run_local(sweep, configs, folder)
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        raise SystemExit(130) from None
    finally:
        lock.release()
    print_table(sweep, folder)
    say(f"for the report: python -m experiments.report {folder}")


if __name__ == "__main__":
    startup.run(main)
