"""What one pass does to one document; on any core."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from lm.data.cleaning.clean import clean
from lm.data.cleaning.records import pack, unpack
from lm.data.cleaning.stage import Applied, Finding, Stage
from lm.data.sources.corpus import Document

PIECE_DOCUMENTS, PIECE_CHARACTERS = 256, 1 << 19  # what a core works on at once


class Step(NamedTuple):
    name: str
    stage: Stage
    config: Any


def apply_clean(config: None, document: Document, verdict: None) -> Applied:
    return document._replace(text=clean(document.text)), []


# Runs before all stages, whichever are chosen.
FLOOR = Step("clean", Stage(type(None), apply_clean), None)


class Plan(NamedTuple):
    """One pass over the documents."""

    steps: list[Step]  # if one decides, it is the first
    sketcher: Step | None  # decides before the next pass


class Todo(NamedTuple):
    split: str
    document: Document | bytes  # bytes: packed
    verdict: Any = None
    leaks: bool = False  # the verdict says that it repeats a training document

    @property
    def size(self) -> int:
        packed = isinstance(self.document, bytes)
        return len(self.document if packed else self.document.text)


class Outcome(NamedTuple):
    split: str
    document: bytes | None  # packed; None: dropped
    sketch: bytes | None  # packed
    steps: dict[str, str]  # name of each step that saw it -> "kept", "changed", "dropped"
    findings: list[tuple[str, Finding]]  # with the name of the step


def pieces(todo: Iterable[Todo]) -> Iterator[list[Todo]]:
    """Cut a stream into lists of some documents and about PIECE_CHARACTERS characters."""
    piece, size = [], 0
    for each in todo:
        piece.append(each)
        size += each.size
        if len(piece) == PIECE_DOCUMENTS or size >= PIECE_CHARACTERS:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def work(plan: Plan, piece: list[Todo]) -> list[Outcome]:
    return [work_on(plan, todo) for todo in piece]


def work_on(plan: Plan, todo: Todo) -> Outcome:
    """Do to one document what a pass does."""
    packed = isinstance(todo.document, bytes)
    document = unpack(todo.document) if packed else todo.document
    steps, findings = {}, []
    for step in plan.steps:
        if todo.split != "train" and not step.stage.held_out:
            steps[step.name] = "kept"
            continue
        before = document
        verdict = todo.verdict if step.stage.decide else None
        document, found = step.stage.apply(step.config, before, verdict)
        if document and not document.text.strip():
            reason = "nothing but white space is left of it"
            document, found = None, [*found, Finding(before.name, "empty", 1.0, reason)]
        findings += [(step.name, each) for each in found]
        if document is None:
            steps["leakage" if todo.leaks else step.name] = "dropped"
            return Outcome(todo.split, None, None, steps, findings)
        steps[step.name] = "kept" if document == before else "changed"
    sketcher, sketch = plan.sketcher, None
    if sketcher:
        sketch = pack(sketcher.stage.sketch(sketcher.config, document), level=0)
    unchanged = packed and "changed" not in steps.values()
    record = todo.document if unchanged else pack(document)
    return Outcome(todo.split, record, sketch, steps, findings)
