"""Run the members of a sweep: on this machine, one after the other, or under SLURM."""

import contextlib
import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from tqdm import tqdm

from configs.base import Experiment
from configs.sweeps.combine import Member
from experiments.processes.children import die_with_parent
from experiments.processes.messages import say
from experiments.run.log import read_metrics
from experiments.run.summary import read_summary
from experiments.sweeps.members import Sweep, command, total_tokens

POLL_SECONDS = 0.5


def done_tokens(workdir: pathlib.Path) -> int:
    try:
        records = read_metrics(workdir / "metrics.jsonl")
    except ValueError:  # the run itself refuses damaged records
        return 0
    trained = [r for r in records if r["split"] == "train"]
    return trained[-1]["tokens"] if trained else 0


def last_error(log: pathlib.Path) -> str:
    """Return the line of a failed run's log that gives the reason."""
    lines = re.split(r"[\r\n]+", log.read_text(errors="replace", encoding="utf-8").strip())
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
    """Train one member; if it fails, write its error to NAME.error."""
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
        error.write_text(last_error(log) + "\n", encoding="utf-8")


def slurm_executor(folder: pathlib.Path, given: list[str]) -> Any:
    """Return submitit's executor; ValueError without SLURM, or for unknown parameters."""
    parameters = slurm_parameters(given)
    try:
        import submitit  # optional: only clusters need it

        executor = submitit.AutoExecutor(folder / "slurm", cluster="slurm")
        executor.update_parameters(**parameters)
    # submitit raises NameError for an unknown parameter, RuntimeError without srun.
    except (ImportError, NameError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"--executor=slurm --slurm={','.join(given)}: {reason}; it needs "
            "requirements-slurm.txt, SLURM's commands and its own parameters"
        ) from None
    return executor


def run_slurm(sweep: Sweep, folder: pathlib.Path, executor: Any) -> None:
    """Submit every member that is not complete, and wait for all of them."""
    jobs = {}
    for name, member in sweep.items():
        if not read_summary(folder / name):
            (folder / f"{name}.error").unlink(missing_ok=True)
            with member_errors(folder, name):
                jobs[name] = submit(executor, name, member, folder / name)
                say(f"submitted {name} as job {jobs[name].job_id}")
    for name, job in tqdm(jobs.items(), "members", disable=not jobs):
        with member_errors(folder, name):
            job.results()


def submit(executor: Any, name: str, member: Member, workdir: pathlib.Path) -> Any:
    import submitit

    # SLURM starts the processes itself, and JAX finds them.
    single = command({**member, "processes": 1, "cores": 0}, workdir)
    executor.update_parameters(name=name[:60], tasks_per_node=member.get("processes", 1))
    return executor.submit(submitit.helpers.CommandFunction(single))


@contextlib.contextmanager
def member_errors(folder: pathlib.Path, name: str) -> Iterator[None]:
    """Write an error to the member's file, so that the other members go on."""
    try:
        yield
    except Exception as error:  # any error counts as this member's
        line = str(error).strip().splitlines()[-1] if str(error).strip() else "failed"
        (folder / f"{name}.error").write_text(line[:500] + "\n", encoding="utf-8")


def slurm_parameters(given: list[str]) -> dict[str, str | int]:
    parameters = {}
    for item in given:
        name, is_given, value = item.partition("=")
        if not is_given:
            raise ValueError(f"--slurm={item}: expected NAME=VALUE, as in partition=gpu")
        parameters[f"slurm_{name}"] = int(value) if value.isdigit() else value
    return parameters
