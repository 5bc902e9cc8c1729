"""Run stages over the documents of all splits, on all cores or machines.

A stage that decides over all documents needs the sketches of all before it can be applied.
So the documents are gone through several times. A pass applies the stages up to the next
one that decides, writes the documents that are left to a file, and writes their sketches.
The next pass reads that file. In memory is no more than some pieces of the stream, a
verdict for each document, and what `decide` keeps of the sketches. A pass that is done is
not done again if the process is killed later.
"""

import collections
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from tqdm import tqdm

from lm.data.cleaning import leakage
from lm.data.cleaning.cores import Cores, Executor, Start
from lm.data.cleaning.leakage import LeakageConfig
from lm.data.cleaning.records import Records, Writer, ends_file
from lm.data.cleaning.stage import Copy
from lm.data.cleaning.work import FLOOR, Plan, Step, Todo, pieces, work
from lm.data.sources.corpus import Document
from lm.data.whole import write_whole

PROGRESS = "progress"  # folder of what a killed preparation has done


class Leaks(NamedTuple):
    """What is done with held-out documents that repeat a training document."""

    policy: str  # "drop", "refuse" or "keep"
    config: LeakageConfig


class Cleaned(NamedTuple):
    splits: dict[str, int]  # how many documents are left in each split
    report: dict[str, dict[str, dict[str, int]]]  # step -> split -> "kept", ... -> how many
    bytes: int = 0  # of text, in UTF-8, as it was read


def run_steps(
    steps: list[Step],
    leaks: Leaks,
    documents: Iterable[tuple[str, Document]],
    folder: pathlib.Path,
    executor: Start = Cores,
) -> Cleaned:
    """Write the cleaned documents to the records `documents` of `folder`.

    `documents` come with their splits, those of training first. Passes that are done are
    found in `folder / PROGRESS`, so a second call with the same arguments goes on where a
    killed one was. The findings are written to `findings.jsonl`.

    Raises ValueError if a step drops every document of a split, and for the first leak if
    `leaks` refuses them.
    """
    if leaks.policy != "keep":
        steps = [*steps, Step("leakage", leakage.LEAKAGE, leaks.config)]
    plans = plan([FLOOR, *steps])
    passes = folder / PROGRESS
    passes.mkdir(exist_ok=True)
    cleaned = Cleaned({}, {})
    with executor() as cores:
        for number, each in enumerate(plans):
            done = passes / f"{number}.json"
            if not done.exists():
                if number:
                    todo = decided(each.steps[0], leaks.policy, cleaned, passes, number - 1)
                else:
                    todo = itertools.starmap(Todo, documents)
                title = f"clean, pass {number + 1} of {len(plans)}"
                todo = tqdm(todo, title, unit=" documents")
                made = run_pass(each, todo, cleaned, passes, number, cores)
                write_whole(done, json.dumps(made))
            cleaned = Cleaned(*json.loads(done.read_text(encoding="utf-8")))
            for file in passes.glob(f"{number - 1}.[ds]*"):
                file.unlink()  # documents and sketches that are not read again
    gather(passes, folder, len(plans))
    return cleaned


def plan(steps: list[Step]) -> list[Plan]:
    """Cut the steps before each one that decides."""
    groups: list[list[Step]] = [[]]
    for step in steps:
        if step.stage.decide:
            groups.append([])
        groups[-1].append(step)
    following = [group[0] for group in groups[1:]]
    return list(map(Plan, groups, [*following, None]))


def decided(
    step: Step, policy: str, cleaned: Cleaned, passes: pathlib.Path, number: int
) -> Iterator[Todo]:
    """Yield the documents that pass `number` left, with the verdicts of the next step."""
    documents = Records(passes / f"{number}.documents")
    num_train = cleaned.splits.get("train", 0)
    # A stage that leaves held-out documents alone learns nothing from them either.
    seen = len(documents) if step.stage.held_out else num_train
    sketches = Records(passes / f"{number}.sketches", 0, seen)
    if step.stage.decide is leakage.decide:
        texts = Texts(documents)
        verdicts = leakage.decide(step.config, sketches, num_train, texts)
    else:
        verdicts = step.stage.decide(step.config, sketches)
    verdicts = itertools.chain(verdicts, itertools.repeat(None, len(documents) - seen))
    splits = itertools.chain.from_iterable(
        itertools.repeat(split, num) for split, num in cleaned.splits.items()
    )
    for place, (split, verdict) in enumerate(zip(splits, verdicts, strict=True)):
        copy = isinstance(verdict, Copy) and verdict.first < num_train <= place
        if copy and policy == "refuse":
            name = documents[place].name
            raise ValueError(
                f"{name}, of {split}, repeats the training document {verdict.name} "
                f"(similarity {verdict.similarity:.3f}); remove one of the two, or set "
                "data.leakage to drop or keep"
            )
        if copy and policy == "keep":
            copy, verdict = False, None
        yield Todo(split, documents.record(place), verdict, copy)


class Texts(Sequence):
    """The texts of documents on disk."""

    def __init__(self, documents: Records):
        self.documents = documents

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, place: int) -> str:
        return self.documents[place].text


def run_pass(
    plan: Plan,
    todo: Iterable[Todo],
    before: Cleaned,
    passes: pathlib.Path,
    number: int,
    cores: Executor,
) -> Cleaned:
    """Apply the steps of a pass; write what is left, its sketches and the findings."""

    def characters(piece: list[Todo]) -> int:
        return sum(each.size for each in piece)

    splits: collections.Counter = collections.Counter()
    counts: collections.Counter = collections.Counter()
    num_bytes = before.bytes
    with (
        Writer(passes / f"{number}.documents") as documents,
        Writer(passes / f"{number}.sketches") as sketches,
        (passes / f"{number}.findings").open("w", encoding="utf-8") as findings,
    ):
        worked = cores.map(partial(work, plan), pieces(todo), characters)
        for outcome in itertools.chain.from_iterable(worked):
            num_bytes += outcome.read
            for name, what in outcome.steps.items():
                counts[name, outcome.split, what] += 1
            for name, found in outcome.findings:
                line = {"stage": name, "split": outcome.split} | found._asdict()
                findings.write(json.dumps(line) + "\n")
            if outcome.document:
                splits[outcome.split] += 1
                documents.add(outcome.document)
            if outcome.sketch:
                sketches.add(outcome.sketch)
    check_left(splits, counts)
    report = dict(before.report)
    for (name, split, what), num in counts.items():
        found = report.setdefault(name, {}).setdefault(split, {})
        found[what] = found.get(what, 0) + num
    return Cleaned(dict(splits), report, num_bytes)


def check_left(splits: collections.Counter, counts: collections.Counter) -> None:
    """Raise ValueError, which names the step that dropped most, for an empty split."""
    for split in dict.fromkeys(split for _, split, _ in counts):
        if splits[split]:
            continue
        num, name = max(
            (num, name)
            for (name, of, what), num in counts.items()
            if of == split and what == "dropped"
        )
        remedy = {
            "clean": "they are empty; give more text",
            "leakage": "they repeat training documents; hold out others, or set "
            "data.leakage=keep",
        }.get(name, f"leave it out of data.stages, or change data.{name}")
        raise ValueError(f"no document of {split} is left: {name} drops {num}; {remedy}")


def gather(passes: pathlib.Path, folder: pathlib.Path, num: int) -> None:
    """Move the documents of the last pass into `folder`, with the findings of all."""
    with (folder / "findings.jsonl").open("wb") as findings:
        for number in range(num):
            with (passes / f"{number}.findings").open("rb") as found:
                shutil.copyfileobj(found, findings)
    last, kept = passes / f"{num - 1}.documents", folder / "documents"
    for file, place in ((last, kept), (ends_file(last), ends_file(kept))):
        if file.exists():  # else a killed process has moved it
            file.rename(place)
