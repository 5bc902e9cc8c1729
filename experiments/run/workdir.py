"""The folder of one run, and the checks that it belongs to that run.

config.json      the resolved config, the family of its model, the fingerprint of its data
tokenizer.json   so that a run can be evaluated without the data cache
metrics.jsonl    one JSON object a line
schedule.jsonl   the pushes to a parameter server in the order in which they were applied
lock             held by the process that trains here
tensorboard/     event files
checkpoints/     Orbax
time.jsonl       where the seconds go (experiments/run/survival/goodput.py)
heartbeats/      the last sign of life of each process
faults.jsonl     faults that were made to happen; faults.json: what there was to fail
summary.json     the final block; the run is complete when it exists
summary-N.json   the final block at step N, if a complete run was trained on
hub/             the small files of the folder that the model came in (import_hf.py)
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import filelock
from jax.experimental import multihost_utils
from tokenizers import Tokenizer

from configs import fields
from configs.base import FAMILIES, Experiment, embeddings_file
from experiments.processes.files import read_object, write_whole
from experiments.run.log import REMOVE_METRICS, read_metrics
from experiments.run.summary import read_summary
from lm.data.embeddings import digest
from lm.data.prepare import Data
from lm.data.sources.config import TextsConfig
from lm.data.tokenizer import load_tokenizer

PATHS = ("path", "target_path", "validation_path", "shifted_path", "cache", "tfds_dir")

HUB = "hub"

# Files that a run killed at its very start may leave.
FIRST_FILES = ("lock", "config.partial")
# Files that a start makes; a failed start removes them in this order.
OWN = (
    "metrics.jsonl",
    "schedule.jsonl",
    "tensorboard",
    "checkpoints",
    "time.jsonl",
    "heartbeats",
    "faults.jsonl",
    "faults.json",
    HUB,
    "tokenizer.json",
    "config.json",
    "lock",
)

# Fields that a folder of parameters without any training has decided already.
FORM = "compress.low_rank."  # of the parameters; experiments.compress changes it
GIVEN = ("model.", "data.tokenizer", "data.end_token", "data.vocab_size", FORM)

# What the commands write that begin a run with parameters: import_hf, compress.
BESIDE_GIVEN = (HUB, "compression.json")

PUT_BACK = "put back a copy of it, or give another --workdir"
REMOVE_TOKENIZER = "remove it, and the command that trains the run writes it anew"


@contextlib.contextmanager
def claimed(
    workdir: pathlib.Path, config: Experiment, data: Data, write: bool
) -> Iterator[None]:
    """Hold the workdir for this run. If it belongs to another: ValueError, nothing written.

    `write` is true in one process, which holds the lock, so that no two runs share a
    workdir. A new run that fails before its first step leaves no file.
    """
    is_new = not (workdir / "config.json").exists()
    check_free(workdir) if is_new else check_own(workdir, config, data)
    with held(workdir, write, lambda: is_new and not has_begun(workdir)):
        if write:
            set_summary_apart(workdir, config.steps)
            write_files(workdir, config, data)
        yield


@contextlib.contextmanager
def held(workdir: pathlib.Path, write: bool, undoes: Callable[[], bool]) -> Iterator[None]:
    """Hold a folder that all processes have checked, in the one that writes.

    If what is inside fails and `undoes` says so, nothing is left of a run.
    """
    # Wait, so that no process checks the folder after another has written into it.
    multihost_utils.sync_global_devices("workdir checked")
    if not write:
        yield
        return
    made = [each for each in (workdir, *workdir.parents) if not each.exists()]
    with locked(workdir):
        try:
            yield
        except BaseException:
            if undoes():
                remove_own(workdir, made)
            raise


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(workdir / "lock", timeout=5):
            yield
    except filelock.Timeout:
        raise ValueError(
            f"{workdir} is in use by another run; give another --workdir"
        ) from None


def check_free(workdir: pathlib.Path) -> None:
    if (workdir / "config.json").exists():
        raise ValueError(f"{workdir} holds a run already; give another --workdir")
    if workdir.exists() and any(f.name not in FIRST_FILES for f in workdir.iterdir()):
        raise ValueError(
            f"{workdir} is not empty and holds no config.json, so it is not a run's "
            "folder; give another --workdir"
        )


def check_own(workdir: pathlib.Path, config: Experiment, data: Data) -> None:
    """Check that the run in the workdir is this one, and that its files are whole."""
    there = read_description(workdir)
    here = described(config, data.meta["fingerprint"])
    differing = differences(read_config(workdir), config)
    if not there["fingerprint"]:  # nothing has been trained on any text
        differing = [line for line in differing if line.startswith(GIVEN)]
    elif there["fingerprint"] != here["fingerprint"] and not differing:
        differing = [
            f"its prepared data is {there['fingerprint']} and that of data.* is "
            f"{here['fingerprint']} now, so the text or the version of what prepares it "
            "has changed"
        ]
    vectors = there.get("embeddings", ""), here["embeddings"]
    if vectors[0] != vectors[1]:
        differing.append(
            f"the content of model.embeddings is {vectors[0] or 'nothing'} there and "
            f"{vectors[1] or 'nothing'} here"
        )
    if differing:
        remedy = "Give another --workdir, or the config it was made with"
        if all(line.startswith(FORM) for line in differing):
            remedy += "; experiments.compress makes a run of it with such factors"
        raise ValueError(
            f"{workdir} belongs to another config: {'; '.join(differing)}. {remedy}"
        )
    check_tokenizer(workdir, data)
    read_summary(workdir)
    check_records(workdir)


def differences(there: Experiment, here: Experiment) -> list[str]:
    """List the fields that decide the numbers of a run and differ.

    `steps` may differ: it moves the end of the run (experiments/run/extension.py). A run
    may also go on under other strategies, with other fields for exchanges and meetings.
    """
    theirs, ours = fields.flatten(there), fields.flatten(here)
    free = {"steps"}
    if there.parallel.strategies != here.parallel.strategies:
        free |= {name for name in theirs | ours if name.startswith("parallel.")}
    names = (fields.deciding(there) | fields.deciding(here)) - free
    return [
        f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here"
        for name in sorted(names)
        if theirs.get(name) != ours.get(name)
    ]


def described(config: Experiment, fingerprint: str) -> dict[str, Any]:
    """Return the contents of config.json, with absolute paths.

    The fingerprint is that of the prepared data; "": the run begins with parameters that
    come from elsewhere, and has not been trained yet.
    """
    sources = tuple(map(with_whole_paths, config.data.sources))
    data_config = dataclasses.replace(with_whole_paths(config.data), sources=sources)
    config = dataclasses.replace(config, data=data_config)
    file = embeddings_file(config)
    if file:
        model = dataclasses.replace(config.model, embeddings=absolute(file))
        config = dataclasses.replace(config, model=model)
    return dataclasses.asdict(config) | {
        "family": family_name(config),
        "embeddings": file and digest(file),
        "fingerprint": fingerprint,
    }


def with_whole_paths(config: TextsConfig) -> TextsConfig:
    names = [name for name in PATHS if hasattr(config, name)]
    return dataclasses.replace(
        config, **{name: absolute(getattr(config, name)) for name in names}
    )


def absolute(path: str) -> str:
    if not path or path.startswith("~") or "://" in path:
        return path
    return str(pathlib.Path(path).absolute())


def write_files(workdir: pathlib.Path, config: Experiment, data: Data) -> None:
    write_description(workdir, config, data.meta["fingerprint"])
    if not (workdir / "tokenizer.json").exists():
        write_whole(workdir / "tokenizer.json", data.tokenizer.to_str())


def write_description(workdir: pathlib.Path, config: Experiment, fingerprint: str) -> None:
    text = json.dumps(described(config, fingerprint), indent=2) + "\n"
    write_whole(workdir / "config.json", text)


def has_begun(workdir: pathlib.Path) -> bool:
    """Tell whether a run has taken a step here."""
    records = workdir / "metrics.jsonl"
    return bool(saved_steps(workdir)) or records.exists() and records.stat().st_size > 0


def has_given(workdir: pathlib.Path) -> bool:
    """Tell whether the run begins with parameters that another command has put there."""
    return any((workdir / name).exists() for name in BESIDE_GIVEN)


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """List the steps of the complete checkpoints, by their folders' names alone."""
    names = [folder.name for folder in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def remove_own(workdir: pathlib.Path, made: list[pathlib.Path]) -> None:
    """Remove what a failed start has written, and the folders that it made."""
    for name in OWN:
        if (workdir / name).is_dir():
            shutil.rmtree(workdir / name, ignore_errors=True)
        else:
            (workdir / name).unlink(missing_ok=True)
    for folder in made:
        with contextlib.suppress(OSError):  # someone else's file is in it
            folder.rmdir()


def set_summary_apart(workdir: pathlib.Path, steps: int) -> None:
    """Rename the summary of a complete run that is to go on: it is no longer complete."""
    summary = read_summary(workdir)
    if summary and summary["steps"] != steps:
        (workdir / "summary.json").rename(workdir / f"summary-{summary['steps']}.json")


def check_tokenizer(workdir: pathlib.Path, data: Data) -> None:
    if not (workdir / "tokenizer.json").exists():
        return
    if read_tokenizer(workdir).to_str() != data.tokenizer.to_str():
        raise ValueError(
            f"{workdir / 'tokenizer.json'} is not the tokenizer of the prepared data "
            f"{data.meta['fingerprint']}, which was made anew by another version of what "
            "prepares it; put back the data that the run was trained with"
        )


def check_records(workdir: pathlib.Path) -> None:
    file, saved = workdir / "metrics.jsonl", saved_steps(workdir)
    if file.exists() and not read_metrics(file) and any(saved):
        raise ValueError(
            f"{file} is empty, but there is a checkpoint of step {saved[-1]}; "
            f"{REMOVE_METRICS}"
        )


def read_tokenizer(workdir: pathlib.Path) -> Tokenizer:
    file = workdir / "tokenizer.json"
    if not file.exists():
        raise ValueError(
            f"{file} is missing; the command that trains the run writes it anew"
        )
    try:
        return load_tokenizer(file)
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{file} is damaged ({error}); {REMOVE_TOKENIZER}") from None


def read_description(workdir: pathlib.Path) -> dict[str, Any]:
    """Read config.json: the fields of the config, `family` and `fingerprint`."""
    file = workdir / "config.json"
    if not file.exists():
        raise ValueError(f"{workdir} holds no run: there is no {file}")
    values = read_object(file, PUT_BACK)
    kinds = {"family": str, "fingerprint": str, "model": dict, "data": dict, "steps": int}
    missing = [x for x, kind in kinds.items() if not isinstance(values.get(x), kind)]
    if missing or values["family"] not in FAMILIES:
        reason = f"no {', '.join(missing)}" if missing else f"family {values['family']!r}"
        raise ValueError(
            f"{file} is not a run's config of this version ({reason}); {PUT_BACK}"
        )
    return values


def read_config(workdir: pathlib.Path) -> Experiment:
    values = read_description(workdir)
    family = FAMILIES[values.pop("family")]
    del values["fingerprint"]
    values.pop("embeddings", None)
    try:
        values["model"] = fields.from_dict(family, values["model"])
        config = fields.from_dict(Experiment, values)
        fields.check_types(config)
    except ValueError as error:
        raise ValueError(
            f"{workdir / 'config.json'} is not a run's config of this version ({error}); "
            f"{PUT_BACK}"
        ) from None
    return config


def family_name(config: Experiment) -> str:
    return next(name for name, cls in FAMILIES.items() if cls is type(config.model))
