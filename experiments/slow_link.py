"""Seconds to a loss over links of several rates, between real processes.

python -m experiments.slow_link --config=configs/tiny.py [--only=shard_map,int8,diloco-50]
python -m experiments.slow_link --report

Linux, as root. Two processes, a core and a namespace each, take steps of each member while
`tc tbf` limits what either sends; lines go to results/slow_link.jsonl. How many steps a
member takes to a loss does not depend on the link: that comes from the curves of

python -m experiments.compare --config=configs/tiny.py --devices=2 --config.steps=400 \
    --eval_every=10 --seeds=1 --results=results/two_devices.jsonl --only=...

Members that meet once in H steps are timed with H = 4, so that turns are short, the steps
with a meeting apart from those without; `--report` joins them for the H they train with.
"""

import pathlib
import statistics
from collections.abc import Sequence

import numpy as np
from absl import flags

from experiments import namespaces, startup
from experiments.linked import workers
from experiments.members import BASE, MEMBERS, as_flags, known
from experiments.results import Line, read, write
from experiments.startup import say

MEMBERS_TIMED = [
    "shard_map", "bfloat16", "int8", "power_sgd-4", "top_k-1%", "local_sgd-8", "diloco-50",
    "diloco-50-int4",
]  # fmt: skip
CONFIG = flags.DEFINE_string("config", "configs/tiny.py", "The config of all.")
ONLY = flags.DEFINE_list("only", MEMBERS_TIMED, "Members to time.")
RATES = flags.DEFINE_list(
    "rates", ["0", "1000", "100", "10", "1"], "Megabits a second; 0: no limit."
)
RESULTS = flags.DEFINE_string("results", "results/slow_link.jsonl", "Where lines go.")
CURVES = flags.DEFINE_string("curves", "results/two_devices.jsonl", "Losses of --report.")
REPORT = flags.DEFINE_bool("report", False, "Print tables of what is there, and end.")
HOSTS = 2
TIMED_EVERY = 4  # H while timing
MOST_STEPS, MOST_SECONDS = 12, 20


def measure(member: str, rates: list[float]) -> list[Line]:
    """Time the steps of one member at each rate."""
    every = MEMBERS[member].get("parallel.local.every", 0)
    overrides = MEMBERS[member] | ({"parallel.local.every": TIMED_EVERY} if every else {})
    config_flags = [f"--config={CONFIG.value}", *as_flags(overrides)]
    lines = []
    with (
        namespaces.network(HOSTS),
        workers(HOSTS, config_flags) as (started, ledger_bytes),
    ):
        started.turn(TIMED_EVERY)
        for rate in rates:
            namespaces.set_rate(HOSTS, rate or None)
            wire = ledger_bytes * 8 / (rate * 1e6) if rate else 0.0
            steps = max(1, min(MOST_STEPS, int(MOST_SECONDS / (wire + 0.3))))
            if every:  # whole rounds of steps, the last with a meeting
                steps = -(-steps // TIMED_EVERY) * TIMED_EVERY
            turn = started.turn(steps)[0]
            seconds = [round(x, 4) for x in turn["seconds"]]
            say(f"{member} at {rate:g} Mbit/s: {statistics.median(seconds):.3f} s a step")
            lines.append(
                {"member": member, "rate": rate, "seconds": seconds, "sent": turn["sent"]}
            )
    return lines


def step_seconds(line: Line) -> float:
    """Return the mean seconds of a step, meetings as often as the member trains with."""
    every = MEMBERS[line["member"]].get("parallel.local.every", 0)
    if not every:
        return statistics.median(line["seconds"])
    meeting = statistics.median(line["seconds"][TIMED_EVERY - 1 :: TIMED_EVERY])
    alone = statistics.median(
        x for i, x in enumerate(line["seconds"], 1) if i % TIMED_EVERY
    )
    return alone + (meeting - alone) / every


def steps_to(curve: list[list[float]], target: float) -> float:
    """Interpolate the step at which a curve of [step, loss] first reaches the target."""
    for (step, loss), (last_step, last_loss) in zip(curve[1:], curve, strict=False):
        if loss <= target:
            share = (last_loss - target) / (last_loss - loss)
            return last_step + max(share, 0.0) * (step - last_step)
    return float("inf")


def crossing(rates: Sequence[float], ratios: Sequence[float]) -> str:
    """Return the rate below which a ratio of seconds to the base's is under 1."""
    order = np.argsort(rates)[::-1]  # fast links first
    for fast, slow in zip(order, order[1:], strict=False):
        if ratios[fast] >= 1 > ratios[slow]:
            share = np.log(ratios[fast]) / np.log(ratios[fast] / ratios[slow])
            log_rate = (1 - share) * np.log(rates[fast]) + share * np.log(rates[slow])
            return f"{np.exp(log_rate):.3g}"
    return "always" if ratios[order[0]] < 1 else "never here"


def report(lines: list[Line], curves: list[Line]) -> str:
    by_member = {x["member"]: x["curve"] + [[x["steps"], x["loss"]]] for x in curves}
    timed = {(x["member"], x["rate"]): step_seconds(x) for x in lines}
    members = [m for m in MEMBERS if m in by_member and any(m == x for x, _ in timed)]
    rates = sorted({rate for _, rate in timed}, key=lambda rate: rate or np.inf)[::-1]
    target = max(min(loss for _, loss in by_member[m]) for m in members)
    need = {m: steps_to(by_member[m], target) for m in members}
    head = " | ".join(f"{rate:g} Mbit/s" if rate else "no limit" for rate in rates)
    out = [
        f"Seconds to a validation loss of {target:.3f}, the best of the slowest learner, "
        "and the rate below which each is faster than float32 all-reduce:\n",
        f"| | steps | {head} | pays below, Mbit/s |",
        f"|---|---|{'---|' * len(rates)}---|",
    ]
    for m in members:
        here = [rate for rate in rates if (m, rate) in timed and (BASE, rate) in timed]
        seconds = {rate: need[m] * timed[m, rate] for rate in here}
        ratios = [seconds[rate] / (need[BASE] * timed[BASE, rate]) for rate in here]
        cells = [f"{seconds[r]:.0f}" if r in seconds else "" for r in rates]
        shaped = [(rate, ratio) for rate, ratio in zip(here, ratios, strict=True) if rate]
        pays = "" if m == BASE else crossing(*zip(*shaped, strict=True))
        out.append(f"| {m} | {need[m]:.0f} | {' | '.join(cells)} | {pays} |")
    return "\n".join(out)


def main() -> None:
    file = pathlib.Path(RESULTS.value)
    with startup.user_errors():
        if REPORT.value:
            print(report(read(file), read(pathlib.Path(CURVES.value))))
            return
        if not namespaces.available():
            raise ValueError("network namespaces need Linux, root and the command ip")
        members = known(ONLY.value)
    done = {(x["member"], x["rate"]) for x in read(file)}
    for member in members:
        rates = [r for r in map(float, RATES.value) if (member, r) not in done]
        for line in measure(member, rates) if rates else []:
            write(file, line)


if __name__ == "__main__":
    startup.run(main)
