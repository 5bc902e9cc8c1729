"""Which flips of a bit of a gradient does its norm give away?

python -m experiments.studies.flips --config=configs/tiny.py --devices=8 \
    [--config.parallel.outlier=5 --flips=200]

Takes the steps of the config, and then the gradients that each of eight replicas would send
for the next batch. Flips each of the 32 bits of randomly chosen elements, one at a time,
and counts how often the norm of the replica's gradient stands out by parallel.outlier, as a
run would see it. Adds a line for each bit to a file, and fills in the table `flips` of a
page.
"""

import pathlib

import jax
import numpy as np
from absl import flags
from jax.flatten_util import ravel_pytree

from experiments.processes import join
from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.run.check import check
from experiments.run.steps import row_order
from experiments.run.trial import Trial, build_trial
from experiments.studies.flips.shares import (
    BITS,
    REPLICAS,
    Gradients,
    flips_table,
    found_share,
)
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import read, write
from lm.data.prepare import prepare
from lm.data.rows.order import train_batches
from lm.data.rows.store import Rows

join.define_flags()
CONFIG = startup.define_config()
FLIPS = flags.DEFINE_integer("flips", 200, "Flips of each bit.", lower_bound=1)
RESULTS = flags.DEFINE_string(
    "results", "results/flips.jsonl", "File of results, to which lines of JSON are added."
)
PAGE = define_page("docs/questions/how-are-failures-survived.md")
FACTOR = 5.0  # where the config gives none


def gradients(trial: Trial, rows: Rows, params) -> Gradients:
    """Return the gradient of each replica's rows of the batch after the last step."""
    config, last = trial.config, trial.config.steps
    batch = next(iter(train_batches(rows, row_order(config), last, last + 1)))
    key = jax.random.fold_in(jax.random.key(config.seed), last)

    @jax.jit
    def own(part):
        grads, sums = jax.grad(trial.task.loss, has_aux=True)(params, part, key)
        return ravel_pytree(grads)[0].astype(np.float32), sums["tokens"]

    parts = np.split(np.arange(config.data.batch_size), REPLICAS)
    found = [own({name: x[part] for name, x in batch.items()}) for part in parts]
    values, tokens = zip(*found, strict=True)
    return Gradients(np.stack(values), np.array(tokens, float))


def main() -> None:
    with user_errors():
        config = startup.load_config(CONFIG)
        if PAGE.value:
            check_names(pathlib.Path(PAGE.value), {"flips"})
        join.start_jax()
        mesh = check(config)
        if config.data.batch_size % REPLICAS:
            raise ValueError(
                f"data.batch_size {config.data.batch_size} is not divisible by the "
                f"{REPLICAS} replicas whose gradients are flipped; give a multiple"
            )
        data = prepare(config.data)
    trial = build_trial(config, data.tokenizer.get_vocab_size(), mesh, data.train)
    *_, (_, state) = trial.train(data.train)
    grads = gradients(trial, data.train, jax.device_get(trial.program.params(state)))
    rng, factor = np.random.default_rng(config.seed), config.parallel.outlier or FACTOR
    file = pathlib.Path(RESULTS.value)
    for bit in range(BITS):
        share = found_share(grads, bit, factor, FLIPS.value, rng)
        head = {"steps": config.steps, "factor": factor, "flips": FLIPS.value}
        write(file, head | {"bit": bit, "found": share})
    if PAGE.value:
        with user_errors():
            fill(pathlib.Path(PAGE.value), {"flips": flips_table(read(file))})


if __name__ == "__main__":
    startup.run(main)
