"""Train every member of a sweep, each in processes of its own; go on where it stopped.

python -m experiments.sweep --sweep=configs/sweeps/degree_batch.py --workdir=runs/sweep
    [--only='devices=8,*' --only='*batch_size=32*'] [--dry_run] [--executor=slurm]

A sweep is a Python file whose get_sweep() returns a list of dicts of overrides
(configs/sweeps/combine.py). A member's run is a folder of the workdir, named by what is
particular to it; complete ones are skipped, and one that fails leaves its error in the
table while the others go on. `python -m experiments.report runs/sweep` makes the report.

On a cluster, --executor=slurm hands the members to SLURM through submitit; what they need
is told by --slurm='partition=gpu,gpus_per_node=8,time=60'.
"""

import copy
import fnmatch
import importlib.util
import json
import pathlib
import re
import signal
import subprocess
import sys
import time
from functools import partial
from types import ModuleType

import filelock
from absl import flags
from tqdm import tqdm

from configs.base import Experiment
from configs.sweeps.combine import LAUNCH, Member, names
from experiments import startup
from experiments.launch import die_with_parent
from experiments.log import human, read_metrics
from experiments.members import as_flags, override
from experiments.startup import say
from experiments.summary import read_summary
from experiments.workdir import write_whole

SWEEP = flags.DEFINE_string(
    "sweep", None, "A sweep file, as configs/sweeps/degree_batch.py."
)
ONLY = flags.DEFINE_multi_string("only", ["*"], "A member to run; * is anything. Repeat.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "List members, memory and bytes, and end.")
EXECUTOR = flags.DEFINE_enum("executor", "local", ["local", "slurm"], "Who runs members.")
SLURM = flags.DEFINE_list("slurm", [], "Of --executor=slurm: submitit's slurm_NAME=VALUE.")

POLL_SECONDS = 0.5
Sweep = dict[str, Member]  # name -> member


def load_sweep(file: str | None) -> Sweep:
    """Import a sweep file; ValueError for what is wrong in it."""
    if not file:
        raise ValueError(
            "no --sweep given; for example --sweep=configs/sweeps/degree_batch.py"
        )
    if not pathlib.Path(file).is_file():
        raise ValueError(f"--sweep={file}: there is no such file")
    module = import_file(file)
    if not hasattr(module, "get_sweep"):
        raise ValueError(f"--sweep={file} has no get_sweep()")
    members = module.get_sweep()
    if not members:
        raise ValueError(f"--sweep={file}: get_sweep() returned no member")
    return dict(zip(names(members), members, strict=True))


def import_file(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("imported_file", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def member_config(name: str, member: Member) -> Experiment:
    """Return a member's config; ValueError for a field or a value that it cannot have."""
    file = member.get("config", "")
    if not pathlib.Path(file).is_file():
        raise ValueError(f"member {name}: there is no config file {file!r}")
    module = import_file(file)
    devices, processes = member.get("devices", 1), member.get("processes", 1)
    if devices % processes:
        raise ValueError(
            f"member {name}: {devices} devices are not divisible by {processes} processes"
        )
    try:
        config = override(copy.deepcopy(module.get_config()), overrides(member))
        config.validate()
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"member {name}: {error}") from None
    return config


def overrides(member: Member) -> Member:
    return {key: value for key, value in member.items() if key not in LAUNCH}


def command(member: Member, workdir: pathlib.Path, *more: str) -> list[str]:
    """Return the command that trains a member in its workdir."""
    training = [f"--config={member['config']}", f"--workdir={workdir}", *more]
    training += as_flags(overrides(member))
    devices, processes = member.get("devices"), member.get("processes", 1)
    cores = member.get("cores", 0)
    if processes == 1 and not cores:
        given = [f"--devices={devices}"] if devices else []
        return [sys.executable, "-m", "experiments.train", *training, *given]
    launch = [f"--processes={processes}", f"--cores_per_process={cores}"]
    if devices:
        launch.append(f"--devices_per_process={devices // processes}")
    return [sys.executable, "-m", "experiments.launch", *launch, "--", *training]


def total_tokens(config: Experiment) -> int:
    return config.steps * config.data.batch_size * config.data.seq_len


def done_tokens(workdir: pathlib.Path) -> int:
    trained = [r for r in read_metrics(workdir / "metrics.jsonl") if r["split"] == "train"]
    return trained[-1]["tokens"] if trained else 0


def last_error(log: pathlib.Path) -> str:
    """Return the line of a failed run's log that says why."""
    lines = re.split(r"[\r\n]+", log.read_text(errors="replace").strip())
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines)[-1].removeprefix("error: ")[:500]


def run_local(sweep: Sweep, configs: dict[str, Experiment], folder: pathlib.Path) -> None:
    """Run the members one after the other; the bar counts the tokens of all."""
    total = sum(map(total_tokens, configs.values()))
    with tqdm(total=total, unit=" tokens", unit_scale=True, dynamic_ncols=True) as bar:
        before = 0
        for index, (name, member) in enumerate(sweep.items(), 1):
            workdir = folder / name
            bar.set_description_str(f"{index}/{len(sweep)} {name}")
            if not read_summary(workdir):
                run_member(member, workdir, bar, before)
            before += total_tokens(configs[name])
            bar.update(before - bar.n)


def run_member(member: Member, workdir: pathlib.Path, bar: tqdm, before: int) -> None:
    """Train one member; leave its error in error.txt if it fails."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    log, error = (workdir.with_name(f"{workdir.name}.{end}") for end in ("log", "error"))
    error.unlink(missing_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(member, workdir),
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=partial(die_with_parent, signal.SIGTERM),
        )
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                bar.update(before + done_tokens(workdir) - bar.n)
        except BaseException:
            process.terminate()  # it saves and ends
            process.wait()
            raise
    if process.returncode:
        error.write_text(last_error(log) + "\n")


def run_slurm(sweep: Sweep, folder: pathlib.Path, parameters: dict[str, str | int]) -> None:
    """Submit every member that is not complete, and wait for all of them."""
    import submitit  # needed on clusters only

    executor = submitit.AutoExecutor(folder / "slurm", cluster="slurm")
    executor.update_parameters(**parameters)
    jobs = {}
    for name, member in sweep.items():
        if not read_summary(folder / name):
            (folder / f"{name}.error").unlink(missing_ok=True)
            # SLURM starts the processes itself, and JAX finds them.
            single = command({**member, "processes": 1, "cores": 0}, folder / name)
            executor.update_parameters(
                name=name[:60], tasks_per_node=member.get("processes", 1)
            )
            jobs[name] = executor.submit(submitit.helpers.CommandFunction(single))
            say(f"submitted {name} as job {jobs[name].job_id}")
    for name, job in tqdm(jobs.items(), "members", disable=not jobs):
        try:
            job.results()
        except Exception as error:  # whatever ended it is this member's error
            line = str(error).strip().splitlines()[-1] if str(error).strip() else "failed"
            (folder / f"{name}.error").write_text(line[:500] + "\n")


def slurm_parameters(given: list[str]) -> dict[str, str | int]:
    parameters = {}
    for item in given:
        name, is_given, value = item.partition("=")
        if not is_given:
            raise ValueError(f"--slurm={item}: expected NAME=VALUE, as in partition=gpu")
        parameters[f"slurm_{name}"] = int(value) if value.isdigit() else value
    return parameters


def dry_run(sweep: Sweep, configs: dict[str, Experiment], folder: pathlib.Path) -> None:
    print(f"{'tokens':>8} {'peak a device':>14} {'sent a step':>12}  member")
    for name, member in sweep.items():
        single = {
            **member,
            "processes": 1,
            "cores": 0,
        }  # the same devices, emulated in one process
        result = subprocess.run(
            command(single, folder / name, "--dry_run"), capture_output=True, text=True
        )
        lines = result.stdout.splitlines()
        peak = next((x.split()[-2:] for x in lines if x.startswith("peak")), ["failed"])
        sent = [x for x in lines if "a step and device" in x]
        sizes = " + ".join(re.search(r"([\d.]+ ?\w*) a step", x)[1] for x in sent) or "0 B"
        tokens = human(total_tokens(configs[name]))
        print(f"{tokens:>8} {' '.join(peak):>14} {sizes:>12}  {name}", flush=True)
        if result.returncode:
            print(result.stderr.strip().splitlines()[-1])


def describe_machine(folder: pathlib.Path) -> None:
    """Write machine.json, from a process of its own: this one must hold no device.

    The limit is measured at each start and the largest kept: other work only lowers it.
    """
    file = folder / "machine.json"
    result = subprocess.run(
        [sys.executable, "-m", "experiments.machine"], stdout=subprocess.PIPE, text=True
    )
    if result.returncode:
        return
    found = json.loads(result.stdout.strip().splitlines()[-1])
    if file.exists():
        known = json.loads(file.read_text())
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
            print(f"{'failed':>8} {'':>9}  {name}: {error.read_text().strip()}")
        else:
            print(f"{'stopped':>8} {'':>9}  {name}")


def own(folder: pathlib.Path) -> filelock.FileLock:
    """Take the sweep's folder; ValueError if another sweep command has it."""
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

    ValueError if a member of that name was another one.
    """
    file = folder / "sweep.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    for name, member in sweep.items():
        if known.get(name, member) != member:
            raise ValueError(
                f"{folder} holds another sweep: its member {name} was {known[name]}, "
                f"and is {member} in --sweep={SWEEP.value}; give another --workdir"
            )
    write_whole(file, json.dumps(known | sweep, indent=1) + "\n")


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


def stop(number: int, frame) -> None:
    raise KeyboardInterrupt


def main() -> None:
    with startup.user_errors():
        folder = startup.workdir()
        sweep = chosen(load_sweep(SWEEP.value), ONLY.value)
        configs = {name: member_config(name, member) for name, member in sweep.items()}
        if DRY_RUN.value:
            dry_run(sweep, configs, folder)
            return
        slurm = slurm_parameters(SLURM.value)
        lock = own(folder)
        record(sweep, folder)
    signal.signal(signal.SIGTERM, stop)
    try:
        describe_machine(folder)
        if EXECUTOR.value == "slurm":
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
