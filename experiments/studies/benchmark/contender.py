"""One side of a benchmark, in a process of its own: Lockstep, bare JAX, or a part of them.

python -m experiments.studies.benchmark.contender --contender=lockstep --shape=small

experiments/studies/benchmark/turns.py describes its input and output.
"""

from functools import partial

import jax
from absl import flags

from experiments.processes import join
from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.studies.benchmark.shapes import (
    SHAPES,
)
from experiments.studies.benchmark.sides import bare, loader, lockstep, products
from experiments.studies.benchmark.turns import peak_of_process, serve

CONTENDERS = ("lockstep", "bare", "loader", "products")
join.define_flags()
CONTENDER = flags.DEFINE_enum(
    "contender", "lockstep", CONTENDERS, "Side of the benchmark to be."
)
SHAPE = flags.DEFINE_enum(
    "shape", "small", list(SHAPES), "Shape of the model and the batch."
)
STRATEGY = flags.DEFINE_string("strategy", "jit", "Strategy of the side lockstep.")
COMPUTE = flags.DEFINE_enum(
    "compute", "float32", ["float32", "bfloat16"], "Type that the model computes in."
)
WORKERS = flags.DEFINE_integer(
    "workers", 0, "Number of processes that load batches; 0: a thread."
)


def device_peak() -> int:
    """Return the most bytes that the device held; on a CPU, the process."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else peak_of_process()


def main() -> None:
    with user_errors():
        join.start_jax()
    sides = {
        "lockstep": partial(lockstep, strategy=STRATEGY.value, compute=COMPUTE.value),
        "bare": partial(bare, compute=COMPUTE.value),
        "loader": partial(loader, workers=WORKERS.value),
        "products": partial(products, compute=COMPUTE.value),
    }
    serve(sides[CONTENDER.value](SHAPES[SHAPE.value]), device_peak)


if __name__ == "__main__":
    startup.run(main)
