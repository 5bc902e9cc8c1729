"""Train the same batches under each exact strategy, degree and precision; compare losses.

python -m experiments.studies.equality --config=configs/tiny.py --devices=8 --num_steps=10

Prints, for each, the largest relative difference of a step's loss from that of one device
under `jit` in the same precision.
"""

import dataclasses
import itertools

import jax
from absl import flags

from configs.base import Experiment
from experiments.processes import join
from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.run.build import build, check
from experiments.sweeps.tables import line, markdown
from lm.data.prepare import prepare
from lm.data.rows.order import train_batches
from lm.precision import DTYPES
from parallel.strategies import EXACT

join.define_flags()
CONFIG = startup.define_config()
NUM_STEPS = flags.DEFINE_integer("num_steps", 10, "Steps of each run.", lower_bound=1)


def train_losses(config: Experiment, data, num_steps: int) -> list[float]:
    _, program = build(config, data.tokenizer.get_vocab_size(), check(config))
    state = program.init(jax.random.key(config.seed))
    losses = []
    for batch in train_batches(
        data.train, config.seed, config.data.batch_size, 0, num_steps
    ):
        state, metrics = program.step(state, program.place(batch))
        losses.append(float(metrics["loss"] / metrics["tokens"]))
    return losses


def variant(config: Experiment, compute: str, strategy: str, degree: int) -> Experiment:
    replace = dataclasses.replace
    return replace(
        config,
        precision=replace(config.precision, compute=compute),
        parallel=replace(config.parallel, strategy=strategy, data=degree),
    )


def main() -> None:
    with user_errors():
        config = startup.load_config(CONFIG)
        join.start_jax()
        check(config)
        data = prepare(config.data)
    degrees = [d for d in (1, 2, 4, 8) if d <= len(jax.devices())]
    print(markdown(["precision", "strategy", *degrees], []))
    one_device = {
        compute: train_losses(variant(config, compute, "jit", 1), data, NUM_STEPS.value)
        for compute in DTYPES
    }
    for compute, strategy in itertools.product(DTYPES, EXACT):
        one, cells = one_device[compute], []
        for degree in degrees:
            config_here = variant(config, compute, strategy, degree)
            losses = train_losses(config_here, data, NUM_STEPS.value)
            worst = max(abs(a - b) / b for a, b in zip(losses, one, strict=True))
            cells.append(f"{worst:.1e}")
        print(line([compute, strategy, *cells]), flush=True)
    for compute, losses in one_device.items():
        print(f"one device, {compute}: loss {losses[0]:.5f} -> {losses[-1]:.5f}")


if __name__ == "__main__":
    startup.run(main)
