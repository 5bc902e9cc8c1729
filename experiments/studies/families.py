"""Compare the runs of a sweep over families of models, in docs/families.md.

python -m experiments.studies.families runs/families [--page=docs/families.md]

Evaluates each run on all its held-out rows (loss, accuracy, classes of tokens), and
measures how fast it continues a prompt, eight rows at once. An encoder-decoder writes the
targets of held-out sources instead, scored by BLEU and chrF. Prints a line for each run,
and fills in the tables of the page.
"""

import json
import pathlib
from typing import Any

from experiments.generation.rate import generation_rate
from experiments.generation.targets import score as score_targets
from experiments.processes import join
from experiments.processes.files import write_whole
from experiments.processes.messages import human, is_main_process, say, user_errors
from experiments.run import startup
from experiments.run.evaluation import held_out_rows, score
from experiments.run.restore import load_run, run_data
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.rows import Row, read_rows
from experiments.sweeps.tables import markdown
from lm.decoding import Beam

join.define_flags()
PAGE = define_page("docs/families.md")
BEAM, PAIRS = Beam(4), 500  # how an encoder-decoder writes, and how many pairs

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


def measured(row: Row, folder: pathlib.Path) -> dict[str, Any]:
    """Return a run's scores and its rate of generation; measure them once."""
    file = folder / row.name / "family.json"
    if not file.exists():
        config, task, params, _, mesh = load_run(folder / row.name, "latest")
        data = run_data(folder / row.name, config)
        rows, usual = held_out_rows(config.data, data, "validation")
        result = score(task, params, data.tokenizer, rows, usual, mesh)
        result["name"] = config.model.describe()
        if task.encode:
            table, _ = score_targets(config, task, params, data, PAIRS, BEAM)
            result["written"] = table
        else:
            result["rate"] = generation_rate(task, params, data.tokenizer)
        write_whole(file, json.dumps(result, indent=1) + "\n")
    return json.loads(file.read_text(encoding="utf-8"))


def cells(row: Row, found: dict[str, Any]) -> list[str]:
    s = row.summary
    return [
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


def table(pairs: list[tuple[Row, dict[str, Any]]]) -> str:
    """Return a table of the runs, the worst first."""
    pairs = sorted(pairs, key=lambda pair: -pair[1]["bits_per_byte"])
    return markdown(COLUMNS, [cells(*pair) for pair in pairs]) + "\n"


def written_table(pairs: list[tuple[Row, dict[str, Any]]]) -> str:
    """Tabulate BLEU and chrF of encoder-decoders by task, baselines last."""
    lines: dict[str, dict[str, list[str]]] = {}
    for row, found in pairs:
        task = row.config["data.source"]
        for writer, scores in found["written"].items():
            shown = found["name"] if writer == "model" else writer
            figures = [f"{scores['bleu']:.1f}", f"{scores['chrf']:.1f}"]
            lines.setdefault(task, {})[shown] = [task, shown, *figures]
    body = [cells for each in lines.values() for cells in each.values()]
    return markdown(["task", "", "BLEU", "chrF"], body) + "\n"


def tables(pairs: list[tuple[Row, dict[str, Any]]]) -> dict[str, str]:
    """Return the tables of docs/families.md by name."""
    found = {"families": table([pair for pair in pairs if "written" not in pair[1]])}
    if with_encoder := [pair for pair in pairs if "written" in pair[1]]:
        found |= {"pairs": table(with_encoder), "written": written_table(with_encoder)}
    return found


def main(folder: str) -> None:
    with user_errors():
        rows, missing = read_rows(pathlib.Path(folder))
        if not rows:
            raise ValueError(f"{folder} has no complete run yet: {missing}")
        join.start_jax()
        if PAGE.value:
            check_names(pathlib.Path(PAGE.value), {"families", "pairs", "written"})
    pairs = []
    for row in rows:
        pairs.append((row, measured(row, pathlib.Path(folder))))
        say(f"{pairs[-1][1]['name']}: {pairs[-1][1]['bits_per_byte']:.4f} bits per byte")
    if PAGE.value and is_main_process():
        with user_errors():
            fill(pathlib.Path(PAGE.value), tables(pairs))


if __name__ == "__main__":
    startup.run(main, argument="the folder of a sweep, such as runs/families")
