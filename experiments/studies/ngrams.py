"""Count the n-grams of a corpus on all devices; compare orders and smoothings.

python -m experiments.studies.ngrams --config=configs/ngram.py --devices=8 \
    [--config.parallel.strategy=shard_map --rows=2048 --page=docs/families.md]

Counts all training rows once, as 5-grams, which contain the shorter n-grams. Prints a table
of the validation losses; --page fills it into a page, and --results adds lines to a file.
"""

import json
import pathlib
import time

import jax
from absl import flags
from jax.sharding import Mesh

from configs.base import Experiment
from experiments.processes import join
from experiments.processes.messages import is_main_process, say, user_errors
from experiments.run import startup
from experiments.run.evaluation import Evaluator
from experiments.run.ngram_counts import check_counting, ngram_counting
from experiments.sweeps import results
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown
from lm.data.prepare import Data, prepare
from lm.data.rows.order import validation_batches
from lm.data.rows.store import Rows
from lm.models.ngram.model import MAX_ORDER, SMOOTHINGS, NgramConfig, smooth
from lm.models.ngram.smoothing import build_levels
from lm.models.setting import Setting
from parallel.counting.program import counting_program
from parallel.mesh import process_rows
from parallel.program import Program, TrainState

join.define_flags()
CONFIG = startup.define_config()
ROWS = flags.DEFINE_integer(
    "rows", 2048, "Number of rows to count in a step.", lower_bound=1
)
RESULTS = flags.DEFINE_string(
    "results", None, "File of results, to which lines of JSON are added."
)
PAGE = define_page("")


def count(program: Program, rows: Rows, batch_size: int) -> tuple[TrainState, float]:
    """Count all rows; return the state, and the seconds without those of compilation."""
    index, num = process_rows(program.mesh)
    mine = slice(index * batch_size // num, (index + 1) * batch_size // num)
    state, step, began = program.init(jax.random.key(0)), None, 0.0
    for batch in validation_batches(rows, batch_size):
        placed = program.place({name: x[mine] for name, x in batch.items()})
        if step is None:
            lowers = hasattr(program.step, "lower")
            step = program.step.lower(state, placed).compile() if lowers else program.step
            began = time.perf_counter()
        state, metrics = step(state, placed)
    say(f"{int(state.step)} steps, {int(metrics['distinct'])} distinct n-grams")
    return state, time.perf_counter() - began


def compare(config: Experiment, data: Data, grams_Mn, counts_M, mesh: Mesh) -> list[Line]:
    """Measure the validation loss of each order and smoothing."""
    vocab_size, seq_len = data.tokenizer.get_vocab_size(), config.data.seq_len
    began = time.perf_counter()
    levels = build_levels(grams_Mn, counts_M, vocab_size)
    say(f"levels: {time.perf_counter() - began:.1f} s")
    lines = []
    for smoothing in SMOOTHINGS:
        for order in range(1, MAX_ORDER + 1):
            model = NgramConfig(order, smoothing)
            began = time.perf_counter()
            params = smooth(model, vocab_size, levels, counts_M)
            estimated = time.perf_counter()
            task = model.task(Setting(vocab_size, seq_len))
            evaluate = Evaluator(
                task, data.tokenizer, data.validation, config.data.batch_size, mesh
            )
            found = evaluate(params)
            lines.append(
                {
                    "smoothing": smoothing,
                    "order": order,
                    "loss": found["loss"],
                    "bits_per_byte": found["bits_per_byte"],
                    "tokens": found["tokens"],
                    "estimate_seconds": round(estimated - began, 2),
                    "evaluate_seconds": round(time.perf_counter() - estimated, 2),
                }
            )
            say(json.dumps(lines[-1]))
    return lines


def table(lines: list[Line]) -> str:
    """Tabulate the losses, one column for each order."""
    body = [
        [smoothing, *(f"{x['loss']:.4f}" for x in lines if x["smoothing"] == smoothing)]
        for smoothing in SMOOTHINGS
    ]
    return markdown(["smoothing", *range(1, MAX_ORDER + 1)], body)


def main() -> None:
    with user_errors():
        config = startup.load_config(CONFIG)
        join.start_jax()
        config.validate()
        check_counting(config)
        if PAGE.value:
            check_names(pathlib.Path(PAGE.value), {"ngrams"})
        mesh = config.parallel.mesh()
        batch_size = -(-ROWS.value // mesh.size) * mesh.size
        data = prepare(config.data)
        num_rows = len(data.train.tokens)
        counting = ngram_counting(
            NgramConfig(MAX_ORDER), data.tokenizer.get_vocab_size(), config.data.seq_len,
            batch_size, num_steps=-(-num_rows // batch_size),
        )  # fmt: skip
        itself = counting._replace(finish=lambda grams, counts: (grams, counts))
        program = counting_program(itself, config.parallel.strategy, mesh)
    state, seconds = count(program, data.train, batch_size)
    say(f"counted in {seconds:.1f} s by {config.parallel.strategy} over {mesh.size}")
    lines = compare(config, data, *program.params(state), mesh)
    print(table(lines))
    if PAGE.value and is_main_process():
        with user_errors():
            fill(pathlib.Path(PAGE.value), {"ngrams": table(lines)})
    for line in lines if RESULTS.value else []:
        results.write(
            pathlib.Path(RESULTS.value), line | {"count_seconds": round(seconds, 2)}
        )


if __name__ == "__main__":
    startup.run(main)
