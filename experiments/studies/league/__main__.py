"""The league: every way to send fewer bytes, each tuned alike, with all its bytes counted.

python -m experiments.studies.league [--only=int8,diloco-30] [--islands=2] [--seeds=3]
python -m experiments.studies.league --frontier     # other sizes too, 0.1 to 3 M
python -m experiments.studies.league --quick        # some runs once more, compared
python -m experiments.studies.league --measure=     # only fills in the page

A cell is a member with a number of islands: first its trials, of a quarter of the length,
then a run of full length for each seed. Trials and runs are lines of
results/league.jsonl; what is there is not run again, so the command can be stopped at any
time. The cells that tell the most come first, and the first seed of all before the second
of any. --minutes=60 ends it after the trial or the run in which they are over.
"""

import math
import pathlib
import time
from collections.abc import Iterator

from absl import flags
from absl.flags import FLAGS

from experiments.processes import join
from experiments.processes.messages import say, user_errors
from experiments.run import startup
from experiments.run.check import check
from experiments.studies.league.corpus import write_corpus
from experiments.studies.league.members import (
    ALL,
    MEMBERS,
    QUICK,
    SIZE,
    STEPS,
    TRIAL_SEED,
    cells,
    dims_of,
    frontier,
    member_config,
    origins,
)
from experiments.studies.league.picture import draw_all
from experiments.studies.league.search import following, length_of, values_at
from experiments.studies.league.tables import (
    begin_of,
    difference,
    league_tables,
    trials_of,
    tuned_values,
)
from experiments.studies.league.training import trained
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import Line, read, write

join.define_flags()
MEASURE = flags.DEFINE_enum("measure", "all", ["all", ""], "Empty: measure nothing.")
ONLY = flags.DEFINE_list("only", list(MEMBERS), "Names of the members to measure.")
ISLANDS = flags.DEFINE_list("islands", [str(n) for n in ALL], "How many islands, each.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of each run: 0, 1, ...", lower_bound=1)
QUICKLY = flags.DEFINE_bool("quick", False, f"Run {', '.join(QUICK)} again, and compare.")
AT_SIZES = flags.DEFINE_bool("frontier", False, "Measure the frontier of sizes.")
MINUTES = flags.DEFINE_float("minutes", math.inf, "End after so many minutes.")
FOLDER = flags.DEFINE_string("folder", "runs/league", "Folder of the text.")
RESULTS = flags.DEFINE_string(
    "results", "results/league.jsonl", "File of results, to which lines of JSON are added."
)
PAGE = define_page("docs/league.md")
DEVICES = 8  # emulated; a member takes as many as it has islands


def tune(
    member: str, size: str, islands: int, text: str, file: pathlib.Path
) -> Iterator[None]:
    """Go on with the search of a cell until it has ended; yield after each trial."""
    member = MEMBERS[member].tuned_as or member
    before = origins(size, islands)
    for cell in before:
        yield from tune(member, *cell, text, file)
    if len(before) > 1:
        return
    begin = begin_of(read(file), member, size, islands)
    dims, length = dims_of(member, begin), length_of(size, islands)
    while point := following(dims, trials_of(read(file), member, size, islands), length):
        values = begin | values_at(dims, point)
        config = member_config(
            member, size, islands, TRIAL_SEED, values, FOLDER.value, trial=True
        )
        figures, _ = trained(config)
        head = {"kind": "trial", "member": member, "size": size, "islands": islands}
        line = {"point": list(point), "values": values, "steps": config.steps}
        write(file, head | line | figures | {"text": text})
        say(f"trial of {member}, {size}, {islands} islands: {figures}, {values}")
        yield


def head_of(lines: list[Line], member: str, size: str, islands: int, seed: int) -> Line:
    """Return what a run is known by: its cell and seed, and what its search has found.

    Lines with other values are of before the search went on.
    """
    source = MEMBERS[member].tuned_as or member
    values = tuned_values(lines, source, size, islands)
    head = {"kind": "run", "member": member, "size": size, "islands": islands}
    return head | {"seed": seed, "steps": STEPS, "values": values}


def run(head: Line, text: str, lines: list[Line]) -> Line:
    """Run a cell; return the line, of which the head is what it is known by."""
    member, size, islands, seed = (
        head[key] for key in ("member", "size", "islands", "seed")
    )
    config = member_config(member, size, islands, seed, head["values"], FOLDER.value)
    figures, costs = trained(config)
    source = MEMBERS[member].tuned_as or member
    trials = len(trials_of(lines, source, size, islands))
    say(f"{member}, {size}, {islands} islands, seed {seed}: {figures}")
    return head | {"trials": trials} | figures | costs | {"text": text}


def measure(text: str, file: pathlib.Path) -> None:
    """Tune and run what is not there yet, cell by cell, until the minutes are over."""
    end = time.monotonic() + 60 * MINUTES.value
    for member, size, islands, seed in wanted():
        for _ in tune(member, size, islands, text, file):
            if time.monotonic() > end:
                return
        head = head_of(lines := read(file), member, size, islands, seed)
        if not any(head.items() <= line.items() for line in lines):
            write(file, run(head, text, lines))
        if time.monotonic() > end:
            return


def wanted() -> Iterator[tuple[str, str, int, int]]:
    """Yield (member, size, islands, seed), the most telling first."""
    league = [(member, SIZE, islands) for member, islands in cells(ONLY.value)]
    chosen = [cell for cell in frontier() if cell[0] in ONLY.value]
    for seed in range(SEEDS.value):
        for cell in chosen if AT_SIZES.value else league:
            if str(cell[2]) in ISLANDS.value:
                yield (*cell, seed)


def again(text: str, file: pathlib.Path) -> None:
    """Run a tenth of the league once more, and say how the losses differ."""
    for member in QUICK:
        head = head_of(lines := read(file), member, SIZE, 2, 0)
        say(difference(lines, run(head, text, lines)))


def main() -> None:
    file = pathlib.Path(RESULTS.value)
    if MEASURE.value:
        if not FLAGS["devices"].present:
            FLAGS.devices = DEVICES
        with user_errors():
            check_flags()
            join.start_jax()
            text = write_corpus(pathlib.Path(FOLDER.value))
            check_text(read(file), text)
            for member, islands in cells(list(MEMBERS)):
                check(member_config(member, SIZE, islands, 0, {}, FOLDER.value))
        say(f"the text in {FOLDER.value} has the fingerprint {text}")
        (again if QUICKLY.value else measure)(text, file)
    if PAGE.value and not QUICKLY.value:
        with user_errors():
            page = pathlib.Path(PAGE.value)
            fill(page, league_tables(read(file)))
            draw_all(read(file), page)


def check_flags() -> None:
    """Raise ValueError for a name or a number not known, or a page that lacks a table."""
    for flag, known in ((ONLY, list(MEMBERS)), (ISLANDS, [str(n) for n in ALL])):
        for given in set(flag.value) - set(known):
            raise ValueError(f"--{flag.name}={given}: choose among {'; '.join(known)}")
    if PAGE.value and not QUICKLY.value:
        check_names(pathlib.Path(PAGE.value), league_tables([]).keys())


def check_text(lines: list[Line], text: str) -> None:
    """Raise ValueError if the results are of another text."""
    others = {line["text"] for line in lines} - {text}
    if others:
        raise ValueError(
            f"{RESULTS.value} has losses on the text {', '.join(sorted(others))}, and the "
            f"text in {FOLDER.value} is {text}: the packages have other versions; give "
            "another file in --results, or the folder of that text in --folder"
        )


if __name__ == "__main__":
    startup.run(main)
