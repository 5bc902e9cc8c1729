"""Print what a step sends between devices, beside what its strategy should send.

python -m experiments.explain --config=configs/tiny.py --devices=8 \
    [--config.parallel.strategy=fsdp --config.parallel.exchange.codec=int8 ...]
    [--topology=tpu-v5e:2x4]

Prints a table of the collectives in the compiled program, each with its bytes and the line
of code that asks for it, then the total and the strategy's closed form. The step is
compiled but does not run; with --topology, by the compiler of TPUs that are absent. A
collective that the strategy does not need is listed as unexpected if it sends more than a
hundredth of the bytes.
"""

import jax

from experiments.planning.absent import compiled, start_devices
from experiments.planning.explanation import explain
from experiments.planning.out_of_memory import settled
from experiments.processes import join, topology
from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.run.check import check, check_compiles

join.define_flags()
CONFIG = startup.define_config()
TOPOLOGY = topology.define_flag()


def main() -> None:
    with user_errors():
        config = startup.load_config(CONFIG)
        devices = start_devices(TOPOLOGY.value, config)
        # Without this, a cached program could name the line numbers of an older file.
        jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
        check_compiles(config)
        config = settled(config, devices)
        mesh = check(config, devices)
    print(f"{config.parallel.strategy} over {dict(mesh.shape)}\n")
    with topology.compiler_errors(compiled(config, "tpu")):
        print(explain(config, mesh))


if __name__ == "__main__":
    startup.run(main)
