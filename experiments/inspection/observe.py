"""What each stage of cleaning finds in a corpus, without dropping or changing a document.

Every stage looks at the documents as they are. So a document that repeats another may also
have an anomaly, whatever data.stages says.
"""

import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from tqdm import tqdm

from lm.data.cleaning.cores import Cores
from lm.data.cleaning.leakage import LEAKAGE, LeakageConfig
from lm.data.cleaning.records import Records
from lm.data.cleaning.run import FLOOR, Cleaned, Step, Todo, decided, plan, run_pass
from lm.data.cleaning.stage import Applied, Copy
from lm.data.cleaning.table import STAGES
from lm.data.config import DataConfig
from lm.data.sources.corpus import Document

Copies = dict[int, Copy]  # place of a document -> what it repeats


class Observed(NamedTuple):
    documents: Records  # those with text, in their order; equal line ends, nothing else
    splits: dict[str, int]  # how many of them are in each split
    copies: dict[str, Copies]  # for each step that looks for copies
    files: list[pathlib.Path]  # of findings, as lines of JSON

    def findings(self) -> Iterator[dict[str, Any]]:
        """Yield stage, split, document, kind, score and reason of all findings."""
        for file in self.files:
            with file.open(encoding="utf-8") as lines:
                yield from map(json.loads, lines)

    def split_of(self, place: int) -> str:
        for split, num in self.splits.items():
            if place < num:
                return split
            place -= num
        raise IndexError(f"document {place} is beyond the last one")


def observe(
    config: DataConfig, documents: Iterable[tuple[str, Document]], folder: pathlib.Path
) -> Observed:
    """Let every stage look at the documents, which come with their splits.

    `folder` takes the documents and the sketches, so that memory does not grow with them.
    """
    steps = [Step(name, row, getattr(config, name)) for name, row in STAGES.items()]
    # Near duplicates are found by their own stage.
    steps.append(Step("leakage", LEAKAGE, LeakageConfig(near=None)))
    plans = plan([FLOOR, *map(looking, steps)])
    copies: dict[str, Copies] = {}
    cleaned = Cleaned({}, {})
    todo: Iterable[Todo] = (Todo(split, document) for split, document in documents)
    with Cores() as cores:
        for number, each in enumerate(plans):
            if number:
                step = each.steps[0]
                todo = decided(step, "drop", cleaned, folder, number - 1)
                todo = noted(todo, copies.setdefault(step.name, {}))
            title = f"look, pass {number + 1} of {len(plans)}"
            todo = tqdm(todo, title, unit=" documents")
            cleaned = run_pass(each, todo, {}, folder, number, cores)
            for file in folder.glob(f"{number - 1}.[ds]*"):
                file.unlink()  # documents and sketches that are not read again
    last = len(plans) - 1
    return Observed(
        Records(folder / f"{last}.documents"),
        cleaned.splits,
        {name: found for name, found in copies.items() if found},
        [folder / f"{number}.findings" for number in range(len(plans))],
    )


def looking(step: Step) -> Step:
    stage = step.stage._replace(apply=partial(look, step.stage.apply), held_out=True)
    return step._replace(stage=stage)


def look(
    apply: Callable[[Any, Document, Any], Applied],
    config: Any,
    document: Document,
    verdict: Any,
) -> Applied:
    """Return the document as it was, and what a stage finds in it."""
    return document, apply(config, document, verdict)[1]


def noted(todo: Iterable[Todo], copies: Copies) -> Iterator[Todo]:
    """Pass on the documents, and note which of them repeat an earlier one."""
    for place, each in enumerate(todo):
        if isinstance(each.verdict, Copy):
            copies[place] = each.verdict
        yield each
