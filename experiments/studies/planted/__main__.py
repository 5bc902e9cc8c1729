"""Write a corpus with planted faults, and the truth about every document of it.

python -m experiments.studies.planted --seed=0 --out=runs/planted0 [--documents=3000]

Writes corpus.jsonl, which --config.data.source=jsonl --config.data.path=FOLDER/corpus.jsonl
reads, and truth.json: for each document its kind and its digest; of a copy the original and
their exact Jaccard similarity; of a damaged text the clean one; of removed spans what stood
there; and every pair of documents whose similarity is at least 0.5, found by comparing all.
This code shares nothing with that which looks for faults.
"""

import collections
import json
import pathlib

from absl import flags

from experiments.processes.files import write_whole
from experiments.processes.messages import say, user_errors
from experiments.run import startup
from experiments.studies.planted.plant import CLEAN, FILE, plant

SEED = flags.DEFINE_integer("seed", 0, "Seed of all choices.", lower_bound=0)
OUT = flags.DEFINE_string("out", None, "Folder to write to.")
DOCUMENTS = flags.DEFINE_integer(
    "documents", CLEAN, "Number of clean documents; the others are in proportion.",
    lower_bound=20,
)  # fmt: skip


def main() -> None:
    with user_errors():
        if not OUT.value:
            raise ValueError("no --out given; for example --out=runs/planted0")
        folder = pathlib.Path(OUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        texts, truth = plant(SEED.value, DOCUMENTS.value)
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        write_whole(folder / FILE, "".join(lines))
        write_whole(folder / "truth.json", json.dumps(truth, indent=1) + "\n")
    kinds = collections.Counter(entry["kind"] for entry in truth["documents"])
    say(", ".join(f"{num} {kind}" for kind, num in kinds.items()))


if __name__ == "__main__":
    startup.run(main)
