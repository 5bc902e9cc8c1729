"""Stages over all documents: order, cores, a killed run, and what cannot work."""

import json
import random

import pytest

from configs import fields
from lm.data.cleaning import cores, table
from lm.data.cleaning.leakage import LeakageConfig
from lm.data.cleaning.records import Records, ends_file
from lm.data.cleaning.run import PROGRESS, Leaks, run_steps
from lm.data.cleaning.stage import Finding, Stage
from lm.data.cleaning.table import STAGES
from lm.data.cleaning.work import Step
from lm.data.config import DataConfig
from lm.data.prepare import prepare
from lm.data.sources.corpus import Document
from tests.lm.data.test_prepare import config

KEEP = Leaks("keep", LeakageConfig(None))


def items(num=60, seed=0):
    """Random documents, some of them twice, some empty; `num` of them to train on."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices("abcdefgh", k=rng.randint(0, 40))) for _ in range(num)]
    texts += rng.choices(texts, k=num // 3)
    texts = rng.sample(texts, len(texts))
    for number, text in enumerate(texts):
        yield "train" if number < num else "validation", Document(text, str(number))


def shout(config, document, verdict):
    """Drop what begins with a, and write the rest in capitals."""
    if document.text.startswith("a"):
        return None, [Finding(document.name, "an_a", 1.0, "it begins with a")]
    return document._replace(text=document.text.upper(), weight=0.5), []


def length(config, document):
    return len(document.text)


def ranks(config, sketches):
    """Give each document the number of longer ones."""
    longest = sorted(sketches, reverse=True)
    return [longest.index(size) for size in sketches]


def marked(config, document, verdict):
    return document._replace(key=f"{document.key}{verdict}."), []


SHOUT = Step("shout", Stage(type(None), shout), None)
RANK = Step("rank", Stage(type(None), marked, length, ranks), None)


def result(folder, steps, leaks=KEEP, documents=None):
    folder.mkdir(exist_ok=True)
    cleaned = run_steps(steps, leaks, items() if documents is None else documents, folder)
    findings = (folder / "findings.jsonl").read_bytes()
    return cleaned, (folder / "documents").read_bytes(), findings


def test_a_stage_may_leave_held_out_documents_alone(tmp_path):
    stage = SHOUT.stage._replace(held_out=False)
    result(tmp_path, [SHOUT._replace(stage=stage)])
    found = [d.text for d in Records(tmp_path / "documents")]
    left = [(split, d.text) for split, d in items() if d.text.strip()]
    trained = [x.upper() for s, x in left if s == "train" and not x.startswith("a")]
    assert found == trained + [x for split, x in left if split == "validation"]
    # Such a stage decides without them, too.
    stage = RANK.stage._replace(held_out=False)
    result(tmp_path / "ranked", [RANK._replace(stage=stage)])
    sizes = [len(text) for split, text in left if split == "train"]
    keys = [f"{sum(x > size for x in sizes)}." for size in sizes]
    found = [document.key for document in Records(tmp_path / "ranked" / "documents")]
    assert found == keys + [""] * (len(left) - len(keys))


def test_stages_see_what_the_ones_before_them_left(tmp_path):
    cleaned, _, findings = result(tmp_path, [RANK, SHOUT, RANK])
    left = [(split, document) for split, document in items() if document.text.strip()]
    kept = [(s, d) for s, d in left if not d.text.startswith("a")]
    sizes = [[len(d.text) for _, d in each] for each in (left, kept)]
    wanted = [
        Document(
            document.text.upper(),
            document.name,
            "".join(f"{sum(x > len(document.text) for x in each)}." for each in sizes),
            0.5,
        )
        for _, document in kept
    ]
    assert list(Records(tmp_path / "documents")) == wanted
    splits = [split for split, _ in kept]
    assert cleaned.splits == {s: splits.count(s) for s in ("train", "validation")}
    for split in cleaned.splits:
        before = sum(s == split for s, _ in left)
        dropped = before - cleaned.splits[split]
        assert cleaned.report["shout"][split] == {
            "changed": cleaned.splits[split],
            "dropped": dropped,
        }
    found = [json.loads(line) for line in findings.splitlines()]
    kinds = [each["kind"] for each in found]
    assert kinds.count("an_a") == len(left) - len(kept)
    assert kinds.count("empty") == len(list(items())) - len(left)


def test_all_cores_give_the_bytes_of_one(tmp_path, monkeypatch):
    names = ("normalise", "exact_dedup", "near_dedup")
    steps = [Step(name, STAGES[name], STAGES[name].config()) for name in names]
    leaks = Leaks("drop", LeakageConfig(None))
    alone = result(tmp_path / "alone", steps, leaks)
    monkeypatch.setattr(cores, "ALONE", 0)
    monkeypatch.setattr(cores, "num_cores", lambda: 2)
    monkeypatch.setattr("lm.data.cleaning.work.PIECE_DOCUMENTS", 7)
    assert result(tmp_path / "together", steps, leaks) == alone
    assert alone[0].report["exact_dedup"]["train"]["dropped"] > 0
    assert alone[0].report["leakage"]["validation"]["dropped"] > 0


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    whole = result(tmp_path / "whole", [RANK, SHOUT, RANK])

    class Killed(BaseException):
        pass

    def killed(config, document):
        raise Killed

    dying = RANK._replace(stage=RANK.stage._replace(sketch=killed))
    with pytest.raises(Killed):  # in the second of three passes
        result(tmp_path / "killed", [RANK, SHOUT, dying])

    def unread():
        raise AssertionError("the first pass is made again")
        yield

    again = result(tmp_path / "killed", [RANK, SHOUT, RANK], documents=unread())
    assert again == whole
    # Killed between the moves of the two files that the documents lie in.
    ends = ends_file(tmp_path / "killed" / "documents")
    ends.rename(tmp_path / "killed" / PROGRESS / "2.documents.ends")
    assert result(tmp_path / "killed", [RANK, SHOUT, RANK], documents=unread()) == whole
    assert list(Records(tmp_path / "killed" / "documents"))


def test_a_stage_that_leaves_nothing_is_named(tmp_path):
    def nothing(config, document, verdict):
        return None, []

    drop = Step("drop_all", Stage(type(None), nothing), None)
    with pytest.raises(ValueError, match="no document of train is left: drop_all drops"):
        result(tmp_path / "all", [SHOUT, drop])
    blank = [("train", Document(" \n", "a")), ("train", Document("", "b"))]
    with pytest.raises(ValueError, match="of train is left: clean drops 2; they are empty"):
        result(tmp_path / "blank", [], documents=blank)


def test_lists_of_stages_that_cannot_work():
    cases = {
        "exact_dedup,nearest": "'nearest', which is no stage; choose from .*near_dedup",
        "near_dedup, exact_dedup": "must come after exact_dedup, as in exact_dedup,near_",
        "exact_dedup,exact_dedup": "names 'exact_dedup' 2 times",
    }
    for stages, words in cases.items():
        with pytest.raises(ValueError, match=words):
            DataConfig(stages=stages).validate()
    assert table.chosen_stages("") == []
    with pytest.raises(
        ValueError, match="stages is '', but .* no effect where data.source"
    ):
        fields.check(DataConfig(source="gettext", source_len=8, stages=""), "data.")


def test_each_choice_has_rows_of_its_own(tmp_path):
    (tmp_path / "corpus").mkdir()
    rng = random.Random(0)
    for number in range(9):
        text = "\n".join(str(rng.random()) for _ in range(50))
        (tmp_path / "corpus" / f"{number}.txt").write_text(text)
    changes = [{}, {"stages": ""}, {"stages": "exact_dedup"}, {"leakage": "keep"}]
    made = [config(tmp_path, **each) for each in changes]
    made.append(config(tmp_path))
    made[-1].near_dedup.threshold = 0.9
    found = {prepare(each).meta["fingerprint"] for each in made}
    assert len(found) == len(made)
