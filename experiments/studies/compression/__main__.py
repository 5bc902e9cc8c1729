"""What making a model smaller costs and saves, and whether to compress or add a device.

python -m experiments.studies.compression [--quick] [--seeds=3] [--only='plain,rank 32']
python -m experiments.studies.compression --measure=rates      # idle cores
python -m experiments.studies.compression --measure=frontier --devices=4 [--seeds=3]
python -m experiments.studies.compression --measure=links      # Linux, root, idle cores
python -m experiments.studies.compression --measure=           # only fill in the page

Adds lines to results/compression.jsonl, skips those that are there, and fills in the tables
of docs/compression.md. `ways` trains configs/tiny.py in all ways to make it smaller, and
`rates` times how fast models of these forms generate. `frontier` trains models of several
sizes at several degrees, as many rows a device, and records losses by step and the bytes
that a device sends. `links` times steps of the same models between real processes over
links of several rates; with the losses of `frontier` that gives losses at equal seconds.
"""

import pathlib

from absl import flags

from experiments.processes import join, namespaces
from experiments.processes.linked import workers
from experiments.processes.messages import user_errors
from experiments.processes.network.emulator import network
from experiments.run import startup
from experiments.studies.compression.members import (
    DEGREES,
    MEMBERS,
    MODELS,
    QUICK,
    ROWS,
    way_config,
)
from experiments.studies.compression.runs import (
    measure,
    measure_frontier,
    measure_rate,
)
from experiments.studies.compression.tables import tables
from experiments.sweeps.members import as_flags
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import Line, measure_missing, read, write

join.define_flags()
MEASURE = flags.DEFINE_enum(
    "measure",
    "ways",
    ["ways", "rates", "frontier", "links", ""],
    "What to measure; empty: nothing.",
)
QUICKLY = flags.DEFINE_bool("quick", False, "A few ways, 60 steps and one seed.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of each member: 0, 1, ...", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 400, "Steps of each run.", lower_bound=10)
ONLY = flags.DEFINE_list(
    "only", [], "Names of ways or models, commas as semicolons; empty: all."
)
RATES = flags.DEFINE_list("rates", ["1000", "100", "10"], "Rates of links, Mbit/s.")
FOLDER = flags.DEFINE_string("folder", "runs/compression", "Folder of the plain models.")
RESULTS = flags.DEFINE_string(
    "results", "results/compression.jsonl", "File to which lines of JSON are added."
)
PAGE = define_page("docs/compression.md")
TIMED_STEPS = 8


def chosen(names: dict) -> list[str]:
    """Return the names of the flag --only, or all; ValueError for an unknown one."""
    wanted = [name.replace(";", ",") for name in ONLY.value]
    if unknown := set(wanted) - set(names):
        known = "; ".join(name.replace(",", ";") for name in names)
        raise ValueError(f"--only={', '.join(sorted(unknown))}: choose among {known}")
    return wanted or list(QUICK if QUICKLY.value and names is MEMBERS else names)


def seeds() -> range:
    return range(1 if QUICKLY.value else SEEDS.value)


def steps() -> int:
    return 60 if QUICKLY.value else STEPS.value


def measure_ways(file: pathlib.Path) -> None:
    heads = [
        {"study": "ways", "member": name, "seed": seed, "steps": steps()}
        for seed in seeds()
        for name in chosen(MEMBERS)
    ]
    folder = pathlib.Path(FOLDER.value)

    def measured(head: Line) -> Line:
        return measure(head["member"], head["seed"], head["steps"], folder)

    measure_missing(file, heads, measured)


def measure_rates(file: pathlib.Path) -> None:
    heads = [{"study": "rates", "member": name} for name in chosen(MEMBERS)]
    measure_missing(file, heads, lambda head: measure_rate(head["member"]))


def measure_models(file: pathlib.Path) -> None:
    heads = [
        {
            "study": "frontier", "member": f"{model} x {degree}", "model": model,
            "devices": degree, "seed": seed, "steps": steps(),
        }
        for seed in seeds()
        for model in chosen(MODELS)
        for degree in DEGREES
    ]  # fmt: skip

    def measured(head: Line) -> Line:
        run = head["model"], head["devices"], head["seed"], head["steps"]
        return measure_frontier(*run)

    measure_missing(file, heads, measured)


def time_links(file: pathlib.Path) -> None:
    """Time steps of each model between as many processes as the degree."""
    done = {
        (x["model"], x["devices"], x["rate"]) for x in read(file) if x["study"] == "links"
    }
    for model in chosen(MODELS):
        for degree in DEGREES:
            left = [r for r in map(float, RATES.value) if (model, degree, r) not in done]
            for line in timed(model, degree, left) if left else []:
                write(file, line)


def timed(model: str, degree: int, rates: list[float]) -> list[Line]:
    overrides = MODELS[model] | {
        "data.batch_size": ROWS * degree,
        "parallel.strategy": "shard_map",
        "steps": steps(),
    }
    head = {"study": "links", "model": model, "devices": degree}
    lines = []
    given = ["--config=configs/tiny.py", *as_flags(overrides)]
    hosts = max(degree, 2)  # a process alone has a link that it does not use
    with network(hosts) as net, workers(degree, given) as (started, _):
        started.turn(2)
        for rate in rates:
            net.set_rate(rate * 1e6)
            turn = started.turn(TIMED_STEPS)[0]
            lines.append(head | {"rate": rate, "seconds": turn["seconds"]})
    return lines


def check_rates() -> None:
    for rate in RATES.value:
        if not float(rate) > 0:
            raise ValueError(f"--rates={rate}: expected Mbit/s, above 0")


def main() -> None:
    file = pathlib.Path(RESULTS.value)
    with user_errors():
        if PAGE.value:
            check_names(pathlib.Path(PAGE.value), set(tables([])))
        if MEASURE.value == "links":
            namespaces.require()
            check_rates()
        for name in chosen(MEMBERS) if MEASURE.value == "ways" else []:
            way_config(MEMBERS[name], 0, steps()).validate()
        if MEASURE.value in ("ways", "rates", "frontier"):
            join.start_jax()
    kinds = {
        "ways": measure_ways, "rates": measure_rates, "frontier": measure_models,
        "links": time_links,
    }  # fmt: skip
    if MEASURE.value:
        kinds[MEASURE.value](file)
    if PAGE.value:
        with user_errors():
            fill(pathlib.Path(PAGE.value), tables(read(file)))


if __name__ == "__main__":
    startup.run(main)
