"""Compare what the stages of cleaning find with the truth of planted faults.

python -m experiments.studies.detection [--seeds=0,1,2,3,4 --documents=3000]

For each seed, plants faults as experiments.studies.planted does, and looks at the corpus as
experiments.inspect does. Adds a line for each seed to results/planted.jsonl, then fills in
the table `planted` of a page from all lines there of as many documents.
"""

import json
import pathlib
import tempfile

from absl import flags

from experiments.inspection.corpus import inspect
from experiments.inspection.truth import planted_table, scores
from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.studies.planted.plant import CLEAN, FILE, plant
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import measure_missing, read
from lm.data.config import DataConfig

SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds of planted corpora.")
DOCUMENTS = flags.DEFINE_integer(
    "documents", CLEAN, "Number of clean documents.", lower_bound=20
)
RESULTS = flags.DEFINE_string(
    "results", "results/planted.jsonl", "File of results, to which lines of JSON are added."
)
PAGE = define_page("docs/questions/how-is-dirty-text-found.md")


def measure(seed: int, num_clean: int) -> dict[str, float]:
    """Plant, look and compare."""
    with user_errors():  # there may not be so many documents to plant
        texts, truth = plant(seed, num_clean)
    with tempfile.TemporaryDirectory(prefix="planted-") as name:
        folder = pathlib.Path(name)
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (folder / FILE).write_text("".join(lines), encoding="utf-8")
        config = DataConfig(source="jsonl", path=str(folder / FILE))
        inspection = inspect(config, num_shards=8, folder=folder)
        return scores(config, texts, truth, inspection.observed)


def main() -> None:
    with user_errors():
        heads = [
            {"member": f"seed {seed}", "seed": int(seed), "documents": DOCUMENTS.value}
            for seed in SEEDS.value
        ]
        if PAGE.value:
            check_names(pathlib.Path(PAGE.value), {"planted"})
    file = pathlib.Path(RESULTS.value)
    measure_missing(file, heads, lambda head: measure(head["seed"], head["documents"]))
    if PAGE.value:
        with user_errors():
            table = planted_table(read(file), DOCUMENTS.value)
            fill(pathlib.Path(PAGE.value), {"planted": table})


if __name__ == "__main__":
    startup.run(main)
