"""Evaluate a run's checkpoint on held-out text: loss, accuracy, classes, calibration.

python -m experiments.evaluate --workdir=runs/a [--checkpoint=best|latest|STEP]
    [--on=validation|shifted|'notes/*.txt']

Prints a table and writes evaluation.json into the workdir. Classes of tokens are told where
the text is Python: the embedded corpus, or files that end in .py.
"""

import json
from typing import Any

from absl import flags

from experiments.processes import join
from experiments.processes.messages import is_main_process, user_errors
from experiments.run import startup
from experiments.run.evaluation import score, scored_rows
from experiments.run.restore import define_checkpoint, load_run
from lm.data.prepare import prepare

join.define_flags()
WORKDIR = startup.define_workdir()
CHECKPOINT = define_checkpoint()
ON = flags.DEFINE_string("on", "validation", "validation, shifted, or files of text.")


def main() -> None:
    with user_errors():
        workdir = startup.workdir(WORKDIR)
        join.start_jax()
        config, task, params, step, mesh = load_run(workdir, CHECKPOINT.value)
        data = prepare(config.data)
        rows, usual = scored_rows(config.data, data, ON.value)
    result = {"step": step, "on": ON.value}
    result |= score(task, params, data, rows, usual, mesh)
    if ON.value == "validation":
        result["bigram_loss"] = data.meta["bigram_loss"]
    if is_main_process():
        print_scores(result)
        (workdir / "evaluation.json").write_text(
            json.dumps(result, indent=2) + "\n", encoding="utf-8"
        )


def print_scores(result: dict[str, Any]) -> None:
    for name, value in result.items():
        if name != "classes":
            shown = (
                value if isinstance(value, str) else f"{value:.4f}".rstrip("0").rstrip(".")
            )
            print(f"{name.replace('_', ' '):18} {shown}")
    if classes := result.get("classes"):
        print(f"\n{'class':18} precision  recall      f1   targets")
        for name, one in classes.items():
            values = "  ".join(f"{one[n]:8.4f}" for n in ("precision", "recall", "f1"))
            print(f"{name:18}{values}  {one['targets']:8}")


if __name__ == "__main__":
    startup.run(main)
