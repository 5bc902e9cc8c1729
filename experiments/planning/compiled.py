"""Candidates checked by a compiler: what they really hold and send."""

import copy
from typing import Any

import jax

from configs import fields
from configs.base import Experiment
from experiments.costs.step import absent_costs, compiled_costs
from experiments.planning.advice import flags_of, named
from experiments.run.build import check
from experiments.run.trial import build_trial
from parallel.cost.ledger import step_ledger
from parallel.cost.plan import Candidate
from parallel.mesh import is_absent


def candidate_config(candidate: Candidate, config: Experiment) -> Experiment:
    """Return the config with the candidate's fields."""
    pairs = (flag.partition("=") for flag in flags_of(candidate, config))
    values = {name.removeprefix("--config."): value for name, _, value in pairs}
    found = copy.deepcopy(config)
    numbers = {k: int(v) if v.isdecimal() else v for k, v in values.items()}
    return fields.override(found, numbers)


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
        found = absent_costs(trial.step, mesh)["total_bytes"]
    return told | {
        "fits": found <= candidate.limit,
        "compiled_bytes": found,
        "compiled_sent": costs["sent_bytes"],
    }
