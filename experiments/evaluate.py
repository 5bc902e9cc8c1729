"""Evaluate a run's checkpoint on held-out text: loss, accuracy, classes, calibration.

python -m experiments.evaluate --workdir=runs/a [--checkpoint=best|latest|STEP]
    [--on=validation|shifted|'notes/*.txt']

python -m experiments.evaluate --workdir=runs/a --neighbours=def,self [--embeddings_to=FILE]

Prints a table of the scores and writes evaluation.json into the workdir. Where the text is
Python (the embedded corpus, or files that end in .py), a second table has the scores by
class of token (keyword, name, number, ...). With --neighbours, prints instead the tokens
whose embeddings are nearest to those of the given ones, by the cosine.
"""

import pathlib
from typing import Any

import numpy as np
from absl import flags
from tokenizers import Tokenizer

from experiments.processes import join
from experiments.processes.files import json_line, write_if_possible
from experiments.processes.messages import is_main_process, user_errors
from experiments.run import startup
from experiments.run.evaluation import (
    file_rows,
    held_out_rows,
    score,
    told_interval,
    told_sources,
)
from experiments.run.restore import define_checkpoint, load_run, run_data
from experiments.run.workdir import read_description, read_tokenizer
from lm.data.embeddings import neighbours, token_id, write_vectors
from lm.task import Params

join.define_flags()
WORKDIR = startup.define_workdir()
CHECKPOINT = define_checkpoint()
ON = flags.DEFINE_string(
    "on", "validation", "Text to evaluate on: validation, shifted, or a pattern of files."
)

NEIGHBOURS = flags.DEFINE_list(
    "neighbours", [], "Print the nearest tokens of these instead, by their embeddings."
)
EMBEDDINGS_TO = flags.DEFINE_string(
    "embeddings_to", None, "Write the embeddings to this file, in word2vec's text format."
)
NUM_NEIGHBOURS = 10


def main() -> None:
    with user_errors():
        workdir = startup.workdir(WORKDIR)
        join.start_jax()
        config, task, params, step, mesh = load_run(workdir, CHECKPOINT.value)
        tokenizer, baseline = read_tokenizer(workdir), {}
        if NEIGHBOURS.value or EMBEDDINGS_TO.value:
            show_embeddings(tokenizer, params)
            return
        if ON.value in ("validation", "shifted"):
            data = run_data(workdir, config)
            rows, usual = held_out_rows(config.data, data, ON.value)
            if ON.value == "validation":
                baseline["bigram_loss"] = data.meta["bigram_loss"]
        else:
            fingerprint = read_description(workdir)["fingerprint"]
            fingerprint = fingerprint or run_data(workdir, config).meta["fingerprint"]
            rows, usual = file_rows(config.data, tokenizer, fingerprint, ON.value)
    result = {"step": step, "on": ON.value}
    result |= score(task, params, tokenizer, rows, usual, mesh) | baseline
    if is_main_process():
        print_scores(result)
        write_if_possible(workdir / "evaluation.json", json_line(result, indent=2))


def show_embeddings(tokenizer: Tokenizer, params: Params) -> None:
    """Print the neighbours of tokens, and write all embeddings, as the flags ask."""
    if "embedding" not in params:
        raise ValueError("--neighbours: the model of this run has no embedding")
    table_VD = np.asarray(params["embedding"], np.float32)
    ids = [token_id(tokenizer, word) for word in NEIGHBOURS.value]
    if not is_main_process():
        return
    for word, index in zip(NEIGHBOURS.value, ids, strict=True):
        print(f"{word!r}, token {index}")
        for other, cosine in neighbours(table_VD, index, NUM_NEIGHBOURS):
            print(f"  {cosine:7.4f}  {tokenizer.decode([other])!r}")
    if EMBEDDINGS_TO.value:
        file = pathlib.Path(EMBEDDINGS_TO.value)
        try:
            print(f"{write_vectors(file, tokenizer, table_VD)} vectors in {file}")
        except OSError as error:
            raise ValueError(
                f"--embeddings_to={file} cannot be written ({error})"
            ) from None


def print_scores(result: dict[str, Any]) -> None:
    for name, value in result.items():
        if name == "loss_by_source":
            print(f"{'  by source':18} {told_sources(result)}")
        elif name not in ("classes", "loss_interval", "documents"):
            shown = (
                value if isinstance(value, str) else f"{value:.4f}".rstrip("0").rstrip(".")
            )
            more = told_interval(result) if name == "loss" else ""
            print(f"{name.replace('_', ' '):18} {shown}{more}")
    if classes := result.get("classes"):
        print(f"\n{'class':18} precision  recall      f1   targets")
        for name, one in classes.items():
            values = "  ".join(f"{one[n]:8.4f}" for n in ("precision", "recall", "f1"))
            print(f"{name:18}{values}  {one['targets']:8}")


if __name__ == "__main__":
    startup.run(main)
