"""Read models that transformers made, compare what they compute, and write them back.

python -m experiments.studies.hub [--models=FOLDER --to=FOLDER --results=FILE --page=FILE]

FOLDER holds folders of models, each with expected.safetensors beside it: what
tests/lm/models/hub/record.py recorded with transformers. Adds a line for each model that
the results do not have yet, and fills in the table of the page. With --to, each model is
also written there, with our logits, for `record.py load` to load and compare.
"""

import pathlib
import tempfile

from absl import flags

from experiments.processes.messages import say, user_errors
from experiments.run import startup
from experiments.studies.hub.compare import measure, table
from experiments.sweeps.pages import define_page, fill
from experiments.sweeps.results import read, write

MODELS = flags.DEFINE_string(
    "models", "tests/lm/models/hub/recorded", "Folder of the models' folders."
)
TO = flags.DEFINE_string("to", None, "Folder to write each model to.")
RESULTS = flags.DEFINE_string("results", "results/hub.jsonl", "File of the results.")
PAGE = define_page("docs/questions/how-do-models-come-from-hugging-face.md")


def main() -> None:
    file = pathlib.Path(RESULTS.value)
    with user_errors(), tempfile.TemporaryDirectory() as scratch:
        folders = sorted(pathlib.Path(MODELS.value).glob("*/config.json"))
        if not folders:
            raise ValueError(f"--models={MODELS.value} holds no folder of a model")
        there = {line["model"] for line in read(file)}
        for folder in (found.parent for found in folders):
            if folder.name not in there:
                line = measure(folder, pathlib.Path(TO.value or scratch) / folder.name)
                write(file, {"model": folder.name} | line)
                say(f"{folder.name}: {line}")
        if PAGE.value:
            fill(pathlib.Path(PAGE.value), {"hub": table(read(file))})


if __name__ == "__main__":
    startup.run(main)
