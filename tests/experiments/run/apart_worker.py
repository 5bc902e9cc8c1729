"""One of two processes whose replicas train apart; replica 2 of 4 is never finite.

python -m tests.experiments.run.apart_worker PORT INDEX
"""

import sys
from types import SimpleNamespace

import jax

from experiments.run.log import skipped_apart
from experiments.run.loop import handle
from parallel.local import LocalConfig
from parallel.mesh import process_rows
from parallel.readings import read
from tests.experiments.run.test_loop import run_of
from tests.parallel.test_local import poisoned
from tests.parallel.toy import BATCH, batches, toy_program

PROCESSES, DEVICES, EVERY = 2, 2, 3


def train() -> None:
    local = LocalConfig(every=EVERY)
    program = toy_program("diloco", poisoned(2), data=4, local=local)
    state = program.init(jax.random.key(1))
    index, num = process_rows(program.mesh)
    mine = slice(index * BATCH // num, (index + 1) * BATCH // num)
    run, log = run_of(20, 4, on_nonfinite="stop"), SimpleNamespace(say=print)
    for step, batch in enumerate(batches(2 * EVERY), 1):
        rows = {name: x[mine] for name, x in batch.items()}
        state, metrics = program.step(state, program.place(rows))
        reading = read(metrics)
        print(f"\nstep {step} skipping {reading.skipping} told {reading.told}")
        handle(skipped_apart(step, reading), run, log)


if __name__ == "__main__":
    port, index = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.distributed.initialize(f"127.0.0.1:{port}", PROCESSES, int(index))
    try:
        train()
    except FloatingPointError as error:
        print(f"\nended: {error}")
