"""What the comparison of replicas costs: the ratio of seconds with it and without it.

python -m experiments.launch --processes=2 --module=experiments.studies.check_cost -- \
    --config=configs/tiny.py --config.check_every=10 [--rounds=20]

Takes `check_every` steps, and `check_every` steps and one check, in turns, and prints the
median of the ratios of neighbours less 1. Ratios of neighbours mean something on a machine
whose speed wanders, too. Emulated devices share the cores, so that each sums the state as
all do: measure in processes that have cores of their own.
"""

import json
import statistics
import time

import jax
from absl import flags

from experiments.processes import join
from experiments.processes.messages import is_main_process, user_errors
from experiments.run import startup
from experiments.run.check import check
from experiments.run.survival.replicas import agreement_check
from experiments.run.trial import build_trial
from lm.data.prepare import prepare

join.define_flags()
CONFIG = startup.define_config()
ROUNDS = flags.DEFINE_integer("rounds", 20, "Pairs of turns.", lower_bound=1)
EVERY = 10  # where the config compares nothing


def main() -> None:
    with user_errors():
        config = startup.load_config(CONFIG)
        join.start_jax()
        mesh = check(config)
        data = prepare(config.data)
    every = config.check_every or EVERY
    trial = build_trial(config, data.tokenizer.get_vocab_size(), mesh, data.train)
    agree, state = agreement_check(trial.program), trial.begin()
    batches = trial.batches(data.train, every * (2 * ROUNDS.value + 2))

    def turn(checks: bool) -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(every):
            state, _ = trial.step(state, next(batches))
        if checks:
            agree(every, state)
        jax.block_until_ready(state)
        return time.perf_counter() - began

    turn(True), turn(False)  # compiled
    ratios = []
    for number in range(ROUNDS.value):
        first = turn(number % 2 == 0)
        second = turn(number % 2 == 1)
        ratios.append(first / second if number % 2 == 0 else second / first)
    if is_main_process():
        cost = statistics.median(ratios) - 1
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios
        told = {"every": every, "cost": cost, "quartiles": [x - 1 for x in quartiles]}
        print(json.dumps(told | {"devices": mesh.size, "rounds": ROUNDS.value}))


if __name__ == "__main__":
    startup.run(main)
