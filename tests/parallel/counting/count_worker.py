"""One of two processes that count together, under shard_map and under pmap.

Each brings its half of the rows, and holds the joined counts to numpy's of all rows.
"""

import sys

import jax

from parallel.counting.program import counting_program
from parallel.mesh import data_mesh, process_rows
from tests.parallel.counting.test_counting import BATCH, assert_counts, batches, counting

PROCESSES, DEVICES = 2, 2


def count(strategy: str) -> None:
    program = counting_program(counting(), strategy, data_mesh(-1))
    state = program.init(jax.random.key(0))
    index, num = process_rows(program.mesh)
    mine = slice(index * BATCH // num, (index + 1) * BATCH // num)
    for batch in batches(2):
        local = {name: rows[mine] for name, rows in batch.items()}
        state, _ = program.step(state, program.place(local))
    assert_counts(program, state, batches(2))
    print(f"\ncounted by {strategy}")


if __name__ == "__main__":
    port, index = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.distributed.initialize(f"127.0.0.1:{port}", PROCESSES, int(index))
    count("shard_map")
    count("pmap")
