"""Measure generation: prompts spread over devices, and one text written in parts.

python -m experiments.studies.generation --workdir=runs/tiny --devices=8 \
    [--judge=runs/judge]
python -m experiments.launch --processes=2 --module=experiments.studies.generation -- \
    --workdir=runs/tiny

Adds lines to results/generation.jsonl, then fills in the tables of docs/generation.md from
all lines there. The prompts are beginnings of held-out texts with unequal lengths, and each
has its own number of tokens to add; tokens a second count the added tokens. `static` fills
all slots, waits until the longest text ends, and fills them again. --judge names a run of a
model with a lower validation loss. The judge compares texts written in parts with texts
written in turn.
"""

import itertools
import pathlib
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs.base import Experiment
from experiments.generation.continuous_batching import Batching, generate_spread
from experiments.generation.parts import write_in_parts, write_in_turn
from experiments.processes import join
from experiments.processes.messages import is_main_process, user_errors
from experiments.run import startup
from experiments.run.evaluation import Evaluator
from experiments.run.restore import load_run, run_data
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import Line, measure_missing, read
from experiments.sweeps.tables import markdown
from lm.data.prepare import Data, prepared_documents
from lm.data.texts import pack_texts
from lm.decoding import Sampling, generate
from lm.task import Params, Task
from lm.vocabulary import END_ID
from parallel.mesh import data_mesh

join.define_flags()
WORKDIR = startup.define_workdir()
JUDGE = flags.DEFINE_string(
    "judge", None, "Folder of the run of a stronger model, which judges texts."
)
RESULTS = flags.DEFINE_string(
    "results",
    "results/generation.jsonl",
    "File of results, to which lines of JSON are added.",
)
PAGE = define_page("docs/generation.md")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds of measurement; medians are kept.")

NUM_PROMPTS, LONGEST_PROMPT, LONGEST_NEW = 128, 48, 64
SLOTS = (1, 4, 16)  # of all devices together; skipped if the devices do not divide it
TEXTS, PARTS, PART_TOKENS = 8, 6, 48  # texts in parts, parts and tokens of each
START = "import os\nimport sys"


class Writer(NamedTuple):
    config: Experiment
    task: Task
    params: Params  # on the host; `on` places them on devices
    data: Data


def requests(data: Data) -> tuple[list[list[int]], list[int]]:
    """Return prompts of unequal length, and the number of tokens to add to each."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, LONGEST_PROMPT + 1, NUM_PROMPTS)
    # As with users, most texts are short and some are long.
    new = np.clip(rng.geometric(4 / LONGEST_NEW, NUM_PROMPTS) + 3, 4, LONGEST_NEW)
    rows = rng.choice(data.validation.tokens, NUM_PROMPTS, replace=False)
    prompts = [
        [END_ID, *row[: n - 1].tolist()] for row, n in zip(rows, lengths, strict=True)
    ]
    return prompts, new.tolist()


def on(mesh: Mesh, writer: Writer) -> Writer:
    """Place the parameters whole on every device of a mesh."""
    whole = NamedSharding(mesh, P())
    return writer._replace(params=jax.device_put(writer.params, whole))


def rate(write: Callable[[], list[list[int]]]) -> float:
    start = time.perf_counter()
    new = write()
    return sum(map(len, new)) / (time.perf_counter() - start)


def spread(writer: Writer, degree: int, slots: int) -> Line:
    """Measure both ways in turns; RuntimeError if a text is not that of one device."""
    prompts, limits = requests(writer.data)
    mesh, there = data_mesh(degree), on(data_mesh(degree), writer)

    def write(refill: bool) -> list[list[int]]:
        batching = Batching(slots // degree, refill=refill)
        return generate_spread(
            there.task, there.params, prompts, limits, Sampling(0.0), 0, mesh, batching
        )

    ways = partial(write, True), partial(write, False)
    whole = generate(writer.task, writer.params, prompts, LONGEST_NEW, Sampling(0.0), 0)
    expected = [text[:limit] for text, limit in zip(whole, limits, strict=True)]
    for way in ways:  # the first call compiles
        if way() != expected:
            raise RuntimeError(f"{degree} devices, {slots} slots: the texts differ")
    rates = [tuple(map(rate, ways)) for _ in range(ROUNDS.value)]
    medians = map(statistics.median, zip(*rates, strict=True))
    return dict(zip(("continuous", "static"), medians, strict=True))


def bits_per_byte(judge: Writer, texts: list[str], mesh) -> float:
    rows = pack_texts(judge.config.data, judge.data.tokenizer, texts)
    evaluate = Evaluator(judge.task, judge.data.tokenizer, rows, mesh.size, mesh)
    return evaluate(judge.params)["bits_per_byte"]


def validation_loss(writer: Writer, mesh) -> float:
    tokenizer, rows = writer.data.tokenizer, writer.data.validation
    evaluate = Evaluator(writer.task, tokenizer, rows, 16 * mesh.size, mesh)
    return evaluate(writer.params)["loss"]


def write_with(writer: Writer, seed: int) -> Callable[[list[str], int], list[str]]:
    """Return a function that continues texts at once; long texts lose their beginning."""
    mesh, tokenizer = data_mesh(1), writer.data.tokenizer
    context, writer = writer.config.data.seq_len, on(mesh, writer)

    def write(texts: list[str], num_new: int) -> list[str]:
        encoded = [tokenizer.encode(text).ids[-(context - num_new) :] for text in texts]
        new = generate_spread(
            writer.task, writer.params, encoded, num_new, Sampling(0.8), seed, mesh,
            Batching(len(texts)),
        )  # fmt: skip
        return tokenizer.decode_batch(new)

    return write


def in_parts(writer: Writer, judge: Writer, mesh) -> dict[str, Line]:
    """Write texts both ways in turns; return times, sizes and the judge's loss."""
    ways = {"in turn": write_in_turn, "in parts": write_in_parts}
    texts: dict[str, list[str]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for seed in range(-1, TEXTS):  # the first compiles
        for name, way in ways.items():
            start = time.perf_counter()
            text = way(write_with(writer, seed + 1), START, PARTS, PART_TOKENS)
            if seed >= 0:
                seconds[name].append(time.perf_counter() - start)
                texts[name].append(text)
    held_out = prepared_documents(
        writer.config.data, writer.data.meta["fingerprint"], "validation"
    )
    real = list(itertools.islice(held_out, TEXTS))
    size = int(statistics.fmean(map(len, texts["in turn"])))
    texts["held-out text"] = [document.text[:size] for document in real]
    return {
        name: {
            "bits_per_byte": bits_per_byte(judge, found, mesh),
            "bytes": statistics.fmean(len(text.encode()) for text in found),
        }
        | ({"seconds": statistics.fmean(seconds[name])} if name in seconds else {})
        for name, found in texts.items()
    }


def tables(lines: list[Line]) -> dict[str, str]:
    """Return the tables of docs/generation.md by name."""
    found = {"spread": spread_table([x for x in lines if x["measure"] == "spread"])}
    if parts := [x for x in lines if x["measure"] == "parts"]:
        found["parts"] = parts_table(parts)
        body = [[name, f"{parts[0][f'{name}_loss']:.3f}"] for name in ("writer", "judge")]
        found["models"] = markdown(["", "validation loss"], body)
    return found


def spread_table(lines: list[Line]) -> str:
    head = ["processes", "devices", "slots"]
    head += ["continuous, tokens/s", "static, tokens/s", "ratio"]
    body = [
        [x["processes"], x["devices"], x["slots"], f"{x['continuous']:.0f}",
         f"{x['static']:.0f}", f"{x['continuous'] / x['static']:.2f}"]
        for x in lines
    ]  # fmt: skip
    return markdown(head, body)


def parts_table(lines: list[Line]) -> str:
    head = ["", "seconds a text", "bytes a text", "judge, bits per byte"]
    body = [
        [x["member"], f"{x['seconds']:.2f}" if "seconds" in x else "",
         f"{x['bytes']:.0f}", f"{x['bits_per_byte']:.3f}"]
        for x in lines
    ]  # fmt: skip
    return markdown(head, body)


def load(workdir: pathlib.Path) -> tuple[Writer, Mesh]:
    config, task, params, _, mesh = load_run(workdir, "latest")
    data = run_data(workdir, config)
    return Writer(config, task, jax.device_get(params), data), mesh


def main() -> None:
    with user_errors():
        workdir = startup.workdir(WORKDIR)
        join.start_jax()
        writer, mesh = load(workdir)
        judge = load(pathlib.Path(JUDGE.value).expanduser())[0] if JUDGE.value else None
        if writer.task.encode is not None:
            raise ValueError(f"{workdir}: give a run of a model without an encoder")
        if PAGE.value:
            check_names(pathlib.Path(PAGE.value), {"spread", "parts", "models"})
    processes = jax.process_count()
    degrees = [mesh.size] if processes > 1 else [1, 2, 4, 8]
    heads = [
        {"measure": "spread", "processes": processes, "devices": degree, "slots": slots}
        for degree in degrees
        for slots in SLOTS
        if degree <= mesh.size and slots % degree == 0
    ]
    file = pathlib.Path(RESULTS.value)
    measure_missing(
        file,
        [{**h, "member": f"{h['devices']} devices, {h['slots']} slots"} for h in heads],
        lambda head: spread(writer, head["devices"], head["slots"]),
    )
    lines = read(file)
    if judge and not any(x["measure"] == "parts" for x in lines):
        losses = {
            "writer_loss": validation_loss(writer, mesh),
            "judge_loss": validation_loss(judge, mesh),
        }
        found = in_parts(writer, judge, mesh)
        measure_missing(
            file,
            [{"measure": "parts", "member": name} for name in found],
            lambda head: found[head["member"]] | losses,
        )
    if PAGE.value and is_main_process():
        with user_errors():
            fill(pathlib.Path(PAGE.value), tables(read(file)))


if __name__ == "__main__":
    startup.run(main)
