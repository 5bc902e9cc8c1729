"""Measure the seconds to a loss over links of several rates, between real processes.

python -m experiments.studies.slow_link --config=configs/tiny.py \
    [--only=shard_map,int8,diloco-50]

Needs Linux and root. Two processes, each with its own core and network namespace, take
steps of each member while an emulated link limits the rate at which each sends. Adds lines
to results/slow_link.jsonl. The number of steps to a loss does not depend on the link. This
other command measures it:

python -m experiments.studies.strategies --config=configs/tiny.py --devices=2 \
    --config.steps=400 --eval_every=10 --seeds=1 --only=... \
    --results=results/two_devices.jsonl --page=

Then the first command fills in the table `slow-link` of docs/strategies.md.

Members that average once in H steps are timed with H = 4, so that measuring is short. Steps
with and without a meeting are timed apart, and experiments/sweeps/link_tables.py weighs
them for the member's own H.
"""

import math
import pathlib
import statistics

from absl import flags

from configs.sweeps.strategies import MEMBERS
from experiments.processes import namespaces
from experiments.processes.linked import workers
from experiments.processes.messages import say, user_errors
from experiments.processes.network.emulator import network
from experiments.run import startup
from experiments.sweeps.link_tables import TIMED_EVERY, slow_link_table
from experiments.sweeps.members import as_flags, known
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import Line, read, write

MEMBERS_TIMED = [
    "shard_map", "bfloat16", "int8", "power_sgd-4", "top_k-1%", "local_sgd-8", "diloco-50",
    "diloco-50-int4",
]  # fmt: skip
CONFIG = flags.DEFINE_string("config", "configs/tiny.py", "Config file of all members.")
ONLY = flags.DEFINE_list("only", MEMBERS_TIMED, "Names of the members to time.")
RATES = flags.DEFINE_list(
    "rates",
    ["0", "1000", "100", "10", "1"],
    "Rates of the link, megabits a second; 0: no limit.",
)
RESULTS = flags.DEFINE_string(
    "results",
    "results/slow_link.jsonl",
    "File of results, to which lines of JSON are added.",
)
CURVES = flags.DEFINE_string(
    "curves",
    "results/two_devices.jsonl",
    "File of results with the members' losses on two devices.",
)
PAGE = define_page("docs/strategies.md")
HOSTS = 2
MOST_STEPS, MOST_SECONDS = 12, 20


def measure(member: str, rates: list[float]) -> list[Line]:
    """Time the steps of one member at each rate."""
    every = MEMBERS[member].get("parallel.local.every", 0)
    overrides = MEMBERS[member] | ({"parallel.local.every": TIMED_EVERY} if every else {})
    config_flags = [f"--config={CONFIG.value}", *as_flags(overrides)]
    lines = []
    with (
        network(HOSTS) as net,
        workers(HOSTS, config_flags) as (started, ledger_bytes),
    ):
        started.turn(TIMED_EVERY)
        for rate in rates:
            net.set_rate(rate * 1e6 or math.inf)
            wire = ledger_bytes * 8 / (rate * 1e6) if rate else 0.0
            steps = max(1, min(MOST_STEPS, int(MOST_SECONDS / (wire + 0.3))))
            if every:  # whole rounds of H steps, the last step with a meeting
                steps = -(-steps // TIMED_EVERY) * TIMED_EVERY
            turn = started.turn(steps)[0]
            seconds = [round(x, 4) for x in turn["seconds"]]
            say(f"{member} at {rate:g} Mbit/s: {statistics.median(seconds):.3f} s a step")
            lines.append(
                {"member": member, "rate": rate, "seconds": seconds, "sent": turn["sent"]}
            )
    return lines


def main() -> None:
    file = pathlib.Path(RESULTS.value)
    with user_errors():
        namespaces.require()
        members, curves = known(ONLY.value), read(pathlib.Path(CURVES.value))
        if PAGE.value:
            check_names(pathlib.Path(PAGE.value), {"slow-link"})
            if not curves:
                raise ValueError(
                    f"{CURVES.value} holds no curves; experiments.studies.strategies "
                    "measures them, or give an empty --page= to fill in no page"
                )
    done = {(x["member"], x["rate"]) for x in read(file)}
    for member in members:
        rates = [r for r in map(float, RATES.value) if (member, r) not in done]
        for line in measure(member, rates) if rates else []:
            write(file, line)
    if PAGE.value:
        with user_errors():
            table = slow_link_table(read(file), curves)
            fill(pathlib.Path(PAGE.value), {"slow-link": table})


if __name__ == "__main__":
    startup.run(main)
