"""Look at a corpus before anything is trained on it.

python -m experiments.inspect --config=configs/tiny.py --out=runs/corpus \
    [--config.data.source=text --config.data.path=FOLDER ... --shards=8]

Writes inspect.html, a page that needs nothing else, inspect.md and inspect.json into the
folder: documents, bytes, tokens and lengths; exact and near duplicates, with texts side by
side; anomalies of each kind with a score and a reason; what the configured stages would
drop and change; held-out documents that repeat training ones; how unlike shards would be.
Every stage looks at the documents as they are, whatever data.stages says. Memory does not
grow with the text; the documents lie in a temporary folder, compressed. --page fills in
the table `shards` of a page of docs/.
"""

import pathlib
import tempfile

from absl import flags

from experiments.inspection.corpus import inspect
from experiments.inspection.found import write_json
from experiments.inspection.page import skew_table, write_inspection
from experiments.inspection.repeats import examples
from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.sweeps.pages import check_names, define_page, fill
from lm.data.config import DataConfig

CONFIG = startup.define_config()
OUT = flags.DEFINE_string("out", None, "Folder to write to.")
SHARDS = flags.DEFINE_integer(
    "shards", 8, "Number of shards whose skew is measured.", lower_bound=1
)
PAGE = define_page("")


def main() -> None:
    with user_errors():
        config = startup.load_config(CONFIG)
        if not OUT.value:
            raise ValueError("no --out given; for example --out=runs/corpus")
        config.validate()
        if PAGE.value:
            check_names(pathlib.Path(PAGE.value), {"shards"})
        out = pathlib.Path(OUT.value)
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="inspect-") as folder:
            found, survey, observed = inspect(
                config.data, SHARDS.value, pathlib.Path(folder)
            )
            write_json(out / "inspect.json", found, observed)
            page = write_inspection(
                out, title(config.data), found, survey, examples(observed)
            )
    if PAGE.value:
        with user_errors():
            fill(pathlib.Path(PAGE.value), {"shards": skew_table(found).markdown()})
    print(f"wrote {page}, {page.with_suffix('.md')} and {page.with_suffix('.json')}")


def title(config: DataConfig) -> str:
    mixture = ", ".join(source.label for source in config.sources)
    return f"Corpus {mixture or config.path or config.name or config.source}"


if __name__ == "__main__":
    startup.run(main)
