"""Train a run on to a later last step than its config had."""

import pathlib

from configs.base import Experiment
from experiments.run.log import read_metrics
from experiments.run.workdir import check_own, read_config, saved_steps
from lm.data.prepare import Data
from lm.optim import schedule


def new_end(workdir: pathlib.Path, config: Experiment, data: Data) -> str:
    """Say how the new last step changes the run in `workdir`; "" if it does not.

    Raises ValueError if it is another run, or cannot end at `config.steps`.
    """
    if not (workdir / "config.json").exists():
        return ""
    check_own(workdir, config, data)
    before, done = read_config(workdir).steps, max(saved_steps(workdir), default=0)
    if config.steps == before:
        return ""
    if config.steps < done:
        raise ValueError(
            f"steps is {config.steps}, but {workdir} has taken {done} steps; give at least "
            f"{done}, or another --workdir"
        )
    if config.model.trained_by == "counts":
        raise ValueError(
            f"steps is {config.steps}, but the tables in {workdir} have room for what "
            f"{before} steps count; give another --workdir"
        )
    return f"this run was to end at step {before} and now ends at {config.steps}" + (
        rate_change(workdir, config, before, done) if done else ""
    )


def rate_change(workdir: pathlib.Path, config: Experiment, before: int, done: int) -> str:
    """Say how the new last step changes the learning rate of the next step."""
    records = read_metrics(workdir / "metrics.jsonl", done)
    # A skipped update does not move the schedule.
    updates = done - sum(r["skipped"] for r in records if r["split"] == "train")
    rates = [float(schedule(config.optim, end)(updates)) for end in (before, config.steps)]
    if rates[0] == rates[1]:
        return f"; the learning rate stays {rates[0]:.3g} after step {done}"
    return (
        f"; the {config.optim.schedule} schedule is stretched to the new end, so the "
        f"learning rate jumps from {rates[0]:.3g} to {rates[1]:.3g} after step {done}"
    )
