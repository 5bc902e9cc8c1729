"""Measure the preparation of text: speed, memory, kills, and Ray against this machine.

python -m experiments.studies.preparation [--megabytes=100,2000 --workers=2]

Makes a corpus of each size from installed Python files, in --folder. Measures each part of
preparation alone on one core; the whole, and `experiments.inspect`, at each size; and at
the smallest size a preparation that is killed half way and goes on, and one on Ray. Adds a
line for each to results/preparation.jsonl, then fills in the tables of a page from all
lines there. Needs Linux. 2,000 MB take hours on 2 cores, and 20 GB of disk.
"""

import hashlib
import json
import pathlib
import sys
import tempfile
from functools import partial

from absl import flags

from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.studies.preparation.corpus import first_texts, write_corpus
from experiments.studies.preparation.stages import PARTS, measure_part
from experiments.studies.preparation.tables import preparation_tables
from experiments.studies.preparation.watch import Watched, watch
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import Line, measure_missing, read

MEGABYTES = flags.DEFINE_list("megabytes", ["100", "2000"], "Sizes of corpora.")
WORKERS = flags.DEFINE_integer("workers", 2, "Processes that clean.", lower_bound=1)
FOLDER = flags.DEFINE_string(
    "folder",
    f"{tempfile.gettempdir()}/lockstep-preparation",
    "Folder for corpora and prepared data.",
)
RESULTS = flags.DEFINE_string(
    "results",
    "results/preparation.jsonl",
    "File of results, to which lines of JSON are added.",
)
PAGE = define_page("docs/questions/how-is-text-prepared.md")

STAGES = "fix,normalise,exact_dedup,near_dedup,anomaly"
PART_BYTES = 20_000_000  # of text that each part is measured on


def heads(sizes: list[int], workers: int) -> list[Line]:
    """Return what is to be measured, as the beginnings of its lines."""
    least, found = min(sizes), []
    for name in PARTS:
        found.append({"member": f"{name} alone", "kind": "part", "part": name})
    for size in sizes:
        found.append({"member": f"local, {size} MB", "kind": "whole", "executor": "local"})
        found.append({"member": f"inspect, {size} MB", "kind": "inspect"})
    found.append({"member": f"ray, {least} MB", "kind": "whole", "executor": "ray"})
    found.append({"member": f"killed, {least} MB", "kind": "killed"})
    by_member = {f"{size} MB": size for size in sizes}
    return [
        head
        | {"megabytes": by_member.get(head["member"].rpartition(", ")[2], least)}
        | ({} if head["kind"] == "part" else {"workers": workers})
        for head in found
    ]


def measure(file: pathlib.Path, folder: pathlib.Path, head: Line) -> Line:
    corpus = write_corpus(folder, head["megabytes"])
    if head["kind"] == "part":
        return measure_part(head["part"], first_texts(corpus, PART_BYTES))
    with tempfile.TemporaryDirectory(prefix="measure-", dir=folder) as name:
        scratch = pathlib.Path(name)
        if head["kind"] == "inspect":
            return inspected(watch(inspect(corpus, scratch)), scratch)
        executor = head.get("executor", "local")
        command = prepare(corpus, scratch, executor, head["workers"])
        if head["kind"] == "whole":
            return prepared(watch(command), scratch)
        (whole,) = (
            line
            for line in read(file)
            if line["member"] == f"local, {head['megabytes']} MB"
            and line["workers"] == head["workers"]
        )
        killed = watch(command, kill_after=whole["seconds"] / 2)
        return prepared(watch(command), scratch) | {"killed_after": killed.seconds}


def config_flags(corpus: pathlib.Path, scratch: pathlib.Path) -> list[str]:
    return [
        "--config=configs/tiny.py",
        "--config.data.source=jsonl",
        f"--config.data.path={corpus}",
        f"--config.data.cache={scratch / 'cache'}",
        f"--config.data.stages={STAGES}",
    ]


def prepare(
    corpus: pathlib.Path, scratch: pathlib.Path, executor: str, workers: int
) -> list[str]:
    return [
        *(sys.executable, "-m", "experiments.prepare", f"--executor={executor}"),
        *(f"--workers={workers}", *config_flags(corpus, scratch)),
    ]


def inspect(corpus: pathlib.Path, scratch: pathlib.Path) -> list[str]:
    command = [sys.executable, "-m", "experiments.inspect", f"--out={scratch / 'out'}"]
    return command + config_flags(corpus, scratch)


def prepared(watched: Watched, scratch: pathlib.Path) -> Line:
    """Return what a preparation took, and a digest of all its files."""
    (meta,) = scratch.glob("cache/rows/*/meta.json")
    made = json.loads(meta.read_text(encoding="utf-8"))
    return {
        "documents": sum(sum(x.values()) for x in made["cleaning"]["clean"].values()),
        "bytes": made["bytes"],
        "targets": made["train"]["targets"],
        "seconds": watched.seconds,
        "mb_per_s": made["bytes"] / 1e6 / watched.seconds,
        "peak": watched.peak,
        "peak_workers": watched.workers,
        "digest": digest(meta.parent),
    }


def digest(folder: pathlib.Path) -> int:
    """Return 48 bits of the SHA-256 of the names and the bytes of all files in a folder."""
    whole = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        whole.update(f"{file.name} {found}\n".encode())
    return int.from_bytes(whole.digest()[:6], "big")


def inspected(watched: Watched, scratch: pathlib.Path) -> Line:
    found = json.loads((scratch / "out" / "inspect.json").read_text(encoding="utf-8"))
    return {
        "documents": found["documents"],
        "bytes": found["bytes"],
        "seconds": watched.seconds,
        "peak": watched.peak,
        "peak_workers": watched.workers,
    }


def main() -> None:
    file, folder = pathlib.Path(RESULTS.value), pathlib.Path(FOLDER.value)
    with user_errors():
        if not sys.platform.startswith("linux"):
            raise ValueError("this study reads /proc, which only Linux has")
        if bad := [x for x in MEGABYTES.value if not x.isdigit() or not int(x)]:
            raise ValueError(f"--megabytes names {bad[0]!r}; expected whole numbers")
        if PAGE.value:
            check_names(pathlib.Path(PAGE.value), set(preparation_tables([])))
        folder.mkdir(parents=True, exist_ok=True)
        repository = pathlib.Path(__file__).parents[3]
        if folder.resolve().is_relative_to(repository):
            raise ValueError(f"--folder={folder} lies in the repository; give another one")
    found = heads(sorted(set(map(int, MEGABYTES.value))), WORKERS.value)
    measure_missing(file, found, partial(measure, file, folder))
    if PAGE.value:
        with user_errors():
            fill(pathlib.Path(PAGE.value), preparation_tables(read(file)))


if __name__ == "__main__":
    startup.run(main)
