"""Train at set speeds under several deals of the rows, beside what the simulator says.

python -m experiments.studies.live_balance [--workers=4 --slow=4 --floor=0.5]

Starts real processes, which train a small model together; the last is --slow times slower
than the others. Each deal is one run: equal numbers of microbatches, numbers by speed,
numbers by wrong speeds, and numbers that move as measured (the policy `reverse`). Adds
lines to results/balance.jsonl, then fills in the table `live` of docs/balance.md.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from absl import flags

from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.studies.balance.live import DEALS, EACH, Expected, expected
from experiments.studies.balance.tables import LIVE, live_table
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import Line, measure_missing, read

WORKERS = flags.DEFINE_integer("workers", 4, "Processes.", lower_bound=2)
SLOW = flags.DEFINE_float("slow", 4.0, "How many times slower the last one is.")
FLOOR = flags.DEFINE_float("floor", 0.5, "Least seconds of a microbatch at speed 1.")
RESULTS = flags.DEFINE_string(
    "results", "results/balance.jsonl", "File of results, to which lines of JSON are added."
)
PAGE = define_page("docs/balance.md")
STEPS = 6
SMALL = (
    "--config=configs/tiny.py", "--config.parallel.strategy=shard_map",
    "--config.data.seq_len=32", "--config.model.width=32", "--config.model.num_layers=1",
    "--config.optim.warmup_steps=2", f"--config.steps={STEPS}",
)  # fmt: skip


def measure(head: Line) -> Line:
    """Run one deal; return the median seconds of its last steps and the expected ones."""
    workers, slow, floor = head["workers"], head["slow"], head["floor"]
    plan = expected(head["member"], workers, slow, floor)
    speeds = [1.0] * (workers - 1) + [1 / slow]
    found = run(plan, speeds, floor)
    return {
        "simulated": plan.simulated,
        "live": statistics.median(found["seconds"][STEPS // 2 :]),
        "first": found["seconds"][0],
        "ideal": plan.ideal,
        "late": found["late"],
        "loss": found["loss"],
    }


def run(plan: Expected, speeds: list[float], floor: float) -> Line:
    """Train in real processes; return the line of process 0."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "line.json"
        command = [
            *(sys.executable, "-m", "experiments.launch", f"--processes={len(speeds)}"),
            *("--module=experiments.studies.live_balance.worker", "--", *SMALL),
            f"--config.data.batch_size={2 * sum(plan.counts)}",
            f"--config.parallel.accumulation={EACH}",
            f"--speeds={','.join(map(str, speeds))}",
            f"--counts={','.join(map(str, plan.counts))}",
            *(f"--floor={floor}", f"--moves={plan.moves}", f"--output={output}"),
        ]
        subprocess.run(command, check=True)
        return json.loads(output.read_text(encoding="utf-8"))


def main() -> None:
    page, file = pathlib.Path(PAGE.value), pathlib.Path(RESULTS.value)
    setting = {"workers": WORKERS.value, "slow": SLOW.value, "floor": FLOOR.value}
    with user_errors():
        if PAGE.value:
            check_names(page, {"live"})
    heads = [{"study": LIVE, "member": deal, **setting} for deal in DEALS]
    measure_missing(file, heads, measure)
    if PAGE.value:
        with user_errors():
            fill(page, {"live": live_table(read(file))})


if __name__ == "__main__":
    startup.run(main)
