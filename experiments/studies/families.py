"""Put the runs of a sweep over families of models into one table, docs/families.md.

python -m experiments.studies.families runs/families [--out=docs/families.md]

Each run is evaluated on all its held-out rows (loss, accuracy, classes of tokens), and
continues a prompt, eight rows at once, to tell how fast it generates. An encoder-decoder
writes the targets of held-out sources instead, and BLEU and chrF judge them.
"""

import json
import pathlib
import time
from typing import Any

from absl import flags

from experiments.generation.targets import score as score_targets
from experiments.processes import join
from experiments.processes.files import write_whole
from experiments.processes.messages import human, say, user_errors
from experiments.run import startup
from experiments.run.evaluation import score, scored_rows
from experiments.run.restore import load_run
from experiments.sweeps.rows import Row, read_rows
from lm.beam import Beam
from lm.data.prepare import Data, prepare
from lm.decoding import Sampling, generate
from lm.task import Params, Task
from lm.vocabulary import END_ID

join.define_flags()
OUT = flags.DEFINE_string("out", "docs/families.md", "The page to write.")
ROWS, NEW_TOKENS = 8, 64  # of the timed generation
BEAM, PAIRS = Beam(4), 500  # of an encoder-decoder's held-out pairs, so many are written

HEAD = """# Families of language models

The same text (the Python standard library), tokenizer (BPE of 2048) and number of target
tokens for each; made by

```sh
python -m experiments.sweep --sweep=configs/sweeps/families.py --workdir=runs/families
python -m experiments.studies.families runs/families
```

Bits per byte, accuracy of the likeliest token and macro F1 over classes of tokens (keyword,
name, number, string, operator, comment, space, other, by Python's own tokenizer) are of all
validation rows. *Seconds* are those of training steps and *tokens/s* their median, on 8
emulated devices that share 2 cores; *generates*: tokens a second, 8 rows at once, greedily.
*Parameters* of n-grams are the places of their tables.

The transformer is not the best after so few tokens, less than half of the training text:
counts of long contexts are, and the GRU is ahead of it too. Not for its learning rate (with
1e-3, 3e-3, 6e-3, 1e-2: 1.719, 1.510, 1.498, 1.578 bits per byte), but because it learns for
longer. Once all of the text was read (4.09 M tokens: configs/tiny.py and configs/lstm.py
with --config.steps=1000; 3.82 M counted), it is first: transformer 1.255, 5-gram 1.280,
GRU 1.313. It passes the GRU between steps 600 and 700.

"""
PAIRS_HEAD = f"""
## Encoder-decoders

Rows of a source and a target, of which the target counts: a function of the same library ->
the first line of its docstring, and messages of gettext catalogues -> their translations
(English -> German). Other text and other tokenizers than above, so no line of this table
compares with those. Django alone has few pairs, many of them placeholders that a copy
keeps; from the catalogues of seven packages (configs/translation.py tells which) the
transformer learns to write BLEU 30.7 and chrF 45.7, where a copy has 21.6 and 22.4.
Below it, what is written for {PAIRS} held-out sources with a beam of {BEAM.size}, against
the references; *copy of the source* and *commonest target* (of the training rows) need no
model.

"""
COLUMNS = (
    "",
    "parameters",
    "tokens",
    "bits per byte",
    "perplexity",
    "accuracy",
    "top 5",
    "macro F1",
    "calibration error",
    "seconds",
    "tokens/s",
    "generates",
)


def generation_rate(task: Task, params: Params, data: Data) -> float:
    """Return tokens a second, those that were asked for, compilation apart."""
    prompt = [END_ID, *data.tokenizer.encode("def ").ids]

    def once() -> float:
        start = time.perf_counter()
        generate(task, params, [prompt] * ROWS, NEW_TOKENS, Sampling(0.0), 0)
        return time.perf_counter() - start

    once()
    return ROWS * NEW_TOKENS / min(once() for _ in range(3))


def measured(row: Row, folder: pathlib.Path) -> dict[str, Any]:
    """Return a run's scores and its rate of generation; measure them once."""
    file = folder / row.name / "family.json"
    if not file.exists():
        config, task, params, _, mesh = load_run(folder / row.name, "latest")
        data = prepare(config.data)
        rows, usual = scored_rows(config.data, data, "validation")
        result = score(task, params, data, rows, usual, mesh)
        result["name"] = config.model.describe()
        if task.encode:
            table, _ = score_targets(config, task, params, data, PAIRS, BEAM)
            result["written"] = table
        else:
            result["rate"] = generation_rate(task, params, data)
        write_whole(file, json.dumps(result, indent=1) + "\n")
    return json.loads(file.read_text())


def line(row: Row, found: dict[str, Any]) -> str:
    s = row.summary
    cells = [
        found["name"],
        human(s["parameters"]),
        human(s["tokens"]),
        f"{found['bits_per_byte']:.4f}",
        f"{found['perplexity']:.2f}",
        f"{found['accuracy']:.4f}",
        f"{found['top_5_accuracy']:.4f}",
        f"{found['macro_f1']:.4f}" if "macro_f1" in found else "",
        f"{found['calibration_error']:.4f}",
        f"{s['seconds']['step']:.1f}",
        human(s["tokens_per_second"]),
        human(found["rate"]) if "rate" in found else "",
    ]
    return f"| {' | '.join(cells)} |\n"


def table(pairs: list[tuple[Row, dict[str, Any]]]) -> str:
    """Return one table, the worst first."""
    pairs = sorted(pairs, key=lambda pair: -pair[1]["bits_per_byte"])
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    return head + "".join(line(*pair) for pair in pairs)


def written_table(pairs: list[tuple[Row, dict[str, Any]]]) -> str:
    """Return BLEU and chrF of what encoder-decoders write, by task, baselines last."""
    lines: dict[str, dict[str, str]] = {}
    for row, found in pairs:
        task = row.config["data.source"]
        for writer, scores in found["written"].items():
            shown = found["name"] if writer == "model" else writer
            cells = f"{scores['bleu']:.1f} | {scores['chrf']:.1f}"
            lines.setdefault(task, {})[shown] = f"| {task} | {shown} | {cells} |\n"
    head = "| task | | BLEU | chrF |\n|---|---|---|---|\n"
    return head + "".join("".join(each.values()) for each in lines.values())


def main(folder: str) -> None:
    with user_errors():
        rows, missing = read_rows(pathlib.Path(folder))
        if not rows:
            raise ValueError(f"{folder} has no complete run yet: {missing}")
        join.start_jax()
    pairs = []
    for row in rows:
        pairs.append((row, measured(row, pathlib.Path(folder))))
        say(f"{pairs[-1][1]['name']}: {pairs[-1][1]['bits_per_byte']:.4f} bits per byte")
    with_encoder = [pair for pair in pairs if "written" in pair[1]]
    text = HEAD + table([pair for pair in pairs if "written" not in pair[1]])
    if with_encoder:
        text += PAIRS_HEAD + table(with_encoder) + "\n" + written_table(with_encoder)
    pathlib.Path(OUT.value).write_text(text)


if __name__ == "__main__":
    startup.run(main, argument="the folder of a sweep, such as runs/families")
