"""Make a trained model smaller: a new run that begins with the compressed parameters.

python -m experiments.compress --workdir=runs/a --to=runs/b
    [--config.compress.quantise.weights=int8] [--calibration=largest|error|loss]
    [--checkpoint=best|latest|STEP]
    [--config.compress.prune.kind=magnitude --config.compress.prune.sparsity=0.5 ...]
    [--config.compress.low_rank.kind=svd --config.compress.low_rank.rank=32 ...]
    [--config.model.num_heads=3 --config.model.mlp_width=256 ...]

The config is that of runs/a with these changes. config.compress changes the numbers;
fewer heads or narrower MLPs take away the smallest of each layer. --merge unsets all of
config.compress: factors are multiplied out, codes become float32.

Writes into runs/b the model at its compressed size (compressed.safetensors), what that cost
and saved (compression.json: loss, bytes, parameters that are not 0), and the checkpoint at
step 0 of a run, with which evaluate, generate and export_hf go on, and train:

python -m experiments.train --workdir=runs/b --config.steps=100
"""

import pathlib
from dataclasses import replace

from absl import flags

from experiments.processes import join
from experiments.processes.messages import human, say, size, user_errors
from experiments.run import startup
from experiments.run.compression.make import CALIBRATIONS, check_smaller, make_smaller
from experiments.run.restore import define_checkpoint
from experiments.run.workdir import read_config
from lm.compress.config import CompressConfig

join.define_flags()
CONFIG = startup.define_config()
WORKDIR = startup.define_workdir()
CHECKPOINT = define_checkpoint()
TO = flags.DEFINE_string("to", None, "Folder of the new run, which must not exist.")
CALIBRATION = flags.DEFINE_enum(
    "calibration",
    "largest",
    CALIBRATIONS,
    "What decides the scales of quantised weights: the largest weight, the least squared "
    "error, or the error weighed by squared gradients of the loss.",
)
MERGE = flags.DEFINE_bool("merge", False, "Write the plain model, without compression.")
BATCHES = flags.DEFINE_integer(
    "calibration_batches", 8, "Training batches of --calibration=loss.", lower_bound=1
)


def main() -> None:
    with user_errors():
        workdir = startup.workdir(WORKDIR)
        if not TO.value:
            raise ValueError("no --to given; for example --to=runs/smaller")
        whole = read_config(workdir)  # --config is that of the run
        config = startup.load_config(CONFIG)
        if MERGE.value:
            config = replace(config, compress=CompressConfig())
        join.start_jax()
        config = check_smaller(whole, config)
        if CALIBRATION.value != "largest" and not config.compress.quantise.bits:
            raise ValueError(
                f"--calibration={CALIBRATION.value} has no effect without "
                "--config.compress.quantise.weights; unset it, or give int8 or int4"
            )
        found = make_smaller(
            workdir, pathlib.Path(TO.value).expanduser(), config, CHECKPOINT.value,
            CALIBRATION.value, BATCHES.value,
        )  # fmt: skip
    before, after = found["before"], found["after"]
    for name, tell in {"loss": "{:.4f}".format, "bytes": size, "nonzero": human}.items():
        say(f"{name:8} {tell(before[name]):>12} -> {tell(after[name])}")


if __name__ == "__main__":
    startup.run(main)
