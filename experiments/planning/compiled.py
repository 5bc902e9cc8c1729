"""Candidates checked by a compiler: what they really hold and send."""

import copy
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import jax

from configs import fields
from configs.base import Experiment
from experiments.costs.step import absent_costs, compiled_costs
from experiments.planning.advice import flags_of, named
from experiments.run.check import check
from experiments.run.trial import build_trial
from experiments.sweeps.members import as_flags
from parallel.cost.ledger import step_ledger
from parallel.cost.machine import Hardware
from parallel.cost.plan import Candidate
from parallel.mesh import is_absent


def candidate_config(candidate: Candidate, config: Experiment) -> Experiment:
    """Return the config with the candidate's fields."""
    pairs = (flag.partition("=") for flag in flags_of(candidate, config))
    values = {name.removeprefix("--config."): value for name, _, value in pairs}
    found = copy.deepcopy(config)
    numbers = {k: int(v) if v.isdecimal() else v for k, v in values.items()}
    return fields.override(found, numbers)


def lacking(hardware: Hardware) -> str:
    """Return why a plan cannot be compiled for the devices here; "": it can."""
    if hardware.machine.name == "this" and hardware.num_devices == jax.device_count():
        return ""
    return (
        f"for the plan is for {hardware.name}, and {jax.device_count()} "
        f"{jax.default_backend()} devices are here; --topology compiles for TPUs, and "
        "--devices=N for N devices of this machine"
    )


def compile_candidate(
    candidate: Candidate, config: Experiment, devices: list[jax.Device] | None
) -> dict[str, Any]:
    """Compile a candidate's step; return its figures beside the plan's.

    `devices` are absent ones; None: those here. A step that is too large for the device has
    `fits` False and the compiler's words.
    """
    told = {
        "candidate": named(candidate),
        "planned_bytes": candidate.memory_bytes,
        "planned_sent": candidate.sent_bytes,
    }
    chosen = candidate_config(candidate, config)
    mesh = check(chosen, devices)
    try:
        trial = build_trial(chosen, chosen.data.vocab_size, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        words = str(error).partition("RESOURCE_EXHAUSTED: ")[2].splitlines()[0]
        return told | {"fits": False, "error": words}
    entries = step_ledger(trial.step, mesh)
    costs = compiled_costs(trial.step, entries, trial.program.abstract)
    found = costs["peak_bytes"]
    if is_absent(mesh):
        found = absent_costs(trial.step, mesh)["peak_bytes"]
    return told | {
        "fits": found <= candidate.limit,
        "compiled_bytes": found,
        "compiled_sent": costs["sent_bytes"],
    }


def measure_absent(
    model: str, topology: str, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Compile configs/MODEL.py for absent TPUs, in a process of its own; it takes minutes.

    Returns the figures of experiments.measure, or {"error": what it said}.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder, "figures.json")
        ended = subprocess.run(
            [
                sys.executable, "-m", "experiments.measure", f"--output={output}",
                f"--config=configs/{model}.py", f"--topology={topology}",
                *as_flags({"precision.compute": "bfloat16", **overrides}),
            ],
            capture_output=True,
            encoding="utf-8",
        )  # fmt: skip
        if ended.returncode == 0:
            return json.loads(output.read_text(encoding="utf-8"))
    last = ended.stderr.strip().splitlines()[-1:] or [f"exit code {ended.returncode}"]
    return {"error": last[0].removeprefix("error: ")}
