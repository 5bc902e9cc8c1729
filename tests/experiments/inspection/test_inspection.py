"""What is found in a small corpus whose copies and sizes are known by construction."""

import json
import random
import re

import numpy as np
import pytest

from experiments.inspection.corpus import find_tokenizer, inspect
from experiments.inspection.found import write_json
from experiments.inspection.page import write_inspection
from experiments.inspection.repeats import difference, examples
from experiments.sweeps.template import Difference
from lm.data.config import DataConfig
from lm.data.sources.corpus import Corpus
from lm.data.sources.table import SOURCES, Source
from lm.data.tokenizer import train_tokenizer

NASTY = "<script>alert(1)</script>|`x`\x07\n"
WORDS = [f"{a}{b}{c}" for a in "bdkmt" for b in "aeiou" for c in "lnrsx"]


def text(seed: int, num: int = 120) -> str:
    """Return lines of words that no other seed gives."""
    rng = random.Random(seed)
    words = [f"{rng.choice(WORDS)}{seed}" for _ in range(num)]
    return "\n".join(" ".join(words[i : i + 8]) for i in range(0, num, 8)) + "\n"


def near(seed: int) -> str:
    """Return text(seed) with another last word: 115 of 117 shingles are in both."""
    return text(seed).rstrip("\n").rsplit(" ", 1)[0] + " other\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspection")
    train = [text(i) for i in range(8)]
    train += [text(0), text(0), text(1), near(2), near(3), near(3), NASTY + text(9)]
    held_out = [text(20), text(4), near(5), text(21)]
    for name, texts in (("train", train), ("held_out", held_out)):
        lines = (json.dumps({"text": x}) + "\n" for x in texts)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def inspection(folder):
    return look(folder, stages="exact_dedup")


def look(folder, **fields):
    scratch = folder / f"scratch{len(list(folder.iterdir()))}"
    scratch.mkdir()
    config = DataConfig(
        source="jsonl", path=f"{folder}/train.jsonl", vocab_size=300,
        validation_path=f"{folder}/held_out.jsonl", **fields,
    )  # fmt: skip
    return inspect(config, 3, scratch)


def test_sizes(folder, inspection):
    found, texts = inspection.found, []
    for name in ("train", "held_out"):
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        texts += [json.loads(line)["text"] for line in lines]
    sizes = [len(each.encode()) for each in texts]
    assert found["documents"] == len(texts) == 19
    assert found["bytes"] == sum(sizes)
    assert found["splits"]["train"]["documents"] == 15
    assert found["lengths"]["bytes"]["0"] == min(sizes)
    assert found["lengths"]["bytes"]["1"] == max(sizes)
    assert found["lengths"]["bytes"]["0.5"] == np.sort(sizes)[9]
    assert found["tokens"] == sum(x["tokens"] for x in found["splits"].values())
    assert "estimated" in found["tokens_by"]


def test_copies_are_counted_once_and_exact_ones_are_not_near(inspection):
    found = inspection.found
    assert found["exact_duplicates"] == 5  # two of 0, one of 1, of 3's near copy and of 4
    assert found["near_duplicates"] == 3  # of 2, of 3, of 5
    largest = found["clusters"]["exact"][0]
    assert largest["documents"] == 3 and largest["first"].endswith("train.jsonl#1")
    assert [x.rpartition("#")[2] for x in largest["others"]] == ["9", "10"]
    for each in found["clusters"]["near"]:
        assert each["similarity"] == pytest.approx(115 / 117)


def test_held_out_copies_are_leaks(inspection):
    leakage = inspection.found["leakage"]
    assert leakage["splits"] == {"validation": {"documents": 4, "repeat_training": 2}}
    told = [(x["document"][-2:], x["how"]) for x in leakage["examples"]]
    assert told == [("#2", "exact_dedup"), ("#3", "near_dedup")]
    assert leakage["by"] == {"exact_dedup": 1, "near_dedup": 1}


def test_the_configured_stages_change_their_own_table_alone(folder, inspection):
    found = dict(inspection.found)
    rows = {x["stage"]: x for x in found["stages"]}
    # A copy across the split is dropped as a leak, whichever stage saw it.
    assert rows["exact_dedup"]["dropped"] == 4 and rows["leakage"]["dropped"] == 2
    assert rows["exact_dedup"]["findings"] == {"exact_duplicate": 5}
    without = look(folder, stages="", leakage="refuse").found
    assert "train.jsonl#" in without["stages_error"] and not without["stages"]
    for name in ("stages", "stages_error"):
        found.pop(name), without.pop(name)
    assert without == found


def test_shards_hold_all_documents_and_tokens(inspection):
    for dealt in inspection.found["skew"].values():
        assert sum(dealt["documents"]) == 19
        assert sum(dealt["tokens"]) == inspection.found["tokens"]
        kinds = np.array(list(dealt["kinds"].values()))
        assert kinds.sum(0).tolist() == dealt["documents"]
    assert sorted(inspection.found["skew"]["dictionary"]["documents"]) == [0, 0, 19]


def test_the_page_needs_nothing_else_and_no_text_breaks_it(tmp_path, inspection):
    found, survey, observed = inspection
    kinds = {
        f"kind{i}": {
            "findings": 9, "worst": [
                {"document": "<b>" + "n" * 500, "kind": "x", "score": 1.0, "reason": NASTY}
            ],
        }
        for i in range(60)
    }  # fmt: skip
    page = write_inspection(
        tmp_path, NASTY, found | {"kinds": kinds}, survey, examples(observed)
    )
    html, markdown = (page.with_suffix(x).read_text("utf-8") for x in (".html", ".md"))
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\(""", html)
    assert "<script" not in html and "&lt;script&gt;" in html and "n" * 200 not in html
    assert "kind0" in html and "kind59" not in html and "of 60 kinds" in html
    pictures = re.findall(r"!\[.*\]\((.*)\)", markdown)
    assert len(pictures) == html.count("data:image/png") == 3
    assert all((tmp_path / each).read_bytes().startswith(b"\x89PNG") for each in pictures)
    assert html.count('class="differs"') == 3  # the pair of each near cluster


def test_json_lists_the_anomalies_of_the_stages(tmp_path, inspection):
    file = tmp_path / "inspect.json"
    write_json(file, inspection.found, inspection.observed)
    written = json.loads(file.read_text())
    anomalies = written.pop("anomalies")
    assert written == json.loads(json.dumps(inspection.found))
    assert all(x.keys() == {"document", "kind", "score", "reason"} for x in anomalies)
    assert len(anomalies) == sum(x["findings"] for x in written["kinds"].values())


def test_a_difference_shows_what_differs_and_little_else():
    left = [f"line {i}" for i in range(100)]
    right = [*left[:50], "new", *left[51:], "x" * 1000]
    parts = difference("\n".join(left), "\n".join(right))
    assert [same for same, *_ in parts] == [True, False, True, False]
    assert parts[0][1] == "... 48 lines ...\nline 48\nline 49" == parts[0][2]
    assert parts[1][1:] == ("line 50", "new")
    assert parts[2][1].splitlines() == [
        "line 51", "line 52", "... 45 lines ...", "line 98", "line 99"
    ]  # fmt: skip
    assert parts[3][1:] == ("", "x" * 300 + " ...")
    fenced = Difference("", "", "a", "b", [(False, "```", "x")]).markdown().splitlines()
    assert fenced == ["````diff", "--- a", "+++ b", "-```", "+x", "````"]
    other = "\n".join(f"other {i}" for i in range(1000))
    assert (
        sum(x.count("\n") for part in difference(other, "\n".join(left)) for x in part[1:])
        < 60
    )


def test_tokens_are_those_of_a_given_tokenizer(folder, tmp_path):
    (tmp_path / "tokenizer.json").write_text(train_tokenizer("byte", [], 257).to_str())
    config = DataConfig(
        source="jsonl", path=f"{folder}/train.jsonl", cache=str(tmp_path),
        tokenizer="pretrained", tokenizer_file=f"{tmp_path}/tokenizer.json", vocab_size=257,
    )  # fmt: skip
    tokenizer, told = find_tokenizer(config, documents=None)
    assert len(tokenizer.encode(text(0)).ids) == len(text(0))  # a token a byte
    assert told == f"pretrained with 257 tokens, of {tmp_path}/tokenizer.json"


def test_a_corpus_without_documents(tmp_path, monkeypatch):
    nothing = Source(lambda config: Corpus({}, lambda split: iter(())))
    monkeypatch.setitem(SOURCES, "nothing", nothing)
    (tmp_path / "blank.txt").write_text("\n \n")
    blank = {"source": "text", "path": f"{tmp_path}/*.txt", "cache": f"{tmp_path}/cache"}
    for number, given in enumerate(({"source": "nothing"}, blank)):
        (folder := tmp_path / f"{number}").mkdir()
        with pytest.raises(ValueError, match="train text has no document with text"):
            inspect(DataConfig(**given), 2, folder)
    given = {"source": "gettext", "name": "django", "cache": blank["cache"]}
    with pytest.raises(ValueError, match="gives pairs of texts; expected a source of"):
        inspect(DataConfig(**given), 2, tmp_path)
