"""Print what a config's step sends, line by line, beside what its strategy should send.

python -m experiments.explain --config=configs/tiny.py --devices=8 \
    [--config.parallel.strategy=fsdp --config.parallel.exchange.codec=int8 ...]

Read from the compiled program; nothing is run. A collective with more than a hundredth of
the bytes that the strategy has no use for is said to be unexpected.
"""

import jax

from experiments.processes import join
from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.run.build import check
from experiments.run.explanation import explain

join.define_flags()
CONFIG = startup.define_config()


def main() -> None:
    with user_errors():
        config = startup.load_config(CONFIG)
        join.start_jax()
        # Else a program that was compiled before an edit would tell the lines of then.
        jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
        mesh = check(config)
    print(f"{config.parallel.strategy} over {dict(mesh.shape)}\n")
    print(explain(config, mesh))


if __name__ == "__main__":
    startup.run(main)
