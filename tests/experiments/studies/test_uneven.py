"""The corpora of what uneven text costs are as they are said to be; so are the tables."""

import json
import pathlib

import pytest
from tokenizers import Tokenizer

from configs import fields
from experiments.studies.uneven import corpora
from experiments.studies.uneven.corpora import POISONED, POISONS, write_corpora
from experiments.studies.uneven.members import STUDIES, base_config
from experiments.studies.uneven.tables import table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    with pytest.MonkeyPatch.context() as patch:
        small = {kind: number // 20 for kind, number in corpora.CHARACTERS.items()}
        patch.setattr(corpora, "CHARACTERS", small)
        write_corpora(folder)
    return folder


def texts(folder: pathlib.Path) -> list[str]:
    lines = (folder / "documents.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_a_fifth_of_the_tokens_is_poison(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    clean = texts(folder / "clean" / "train" / "code")
    for kind in POISONS:
        train = folder / f"poison-{kind}" / "train"
        assert texts(train / "code") == clean
        bad = texts(train / "poison")
        counts = [len(tokenizer.encode(text).ids) for text in bad]
        others = sum(len(tokenizer.encode(text).ids) for text in clean)
        share = sum(counts) / (sum(counts) + others)
        last = counts[-1] / others  # the document that fills it up
        assert POISONED <= share < POISONED + last, kind
        assert not set(bad) & set(clean)


def test_what_is_held_out_is_not_trained_on(folder):
    for name in ("clean", "kinds", "mixture", "small"):
        train, held_out = (
            [text for kind in (folder / name / split).iterdir() for text in texts(kind)]
            for split in ("train", "validation")
        )
        assert train and held_out and not set(train) & set(held_out)
    small, whole = (texts(folder / x / "train" / "code") for x in ("small", "clean"))
    assert small == whole[::10]
    common, rare = (texts(folder / "mixture" / "train" / x) for x in ("code", "prose"))
    characters = sum(map(len, common)) / 10
    assert characters <= sum(map(len, rare)) < characters + len(rare[-1])


def test_every_member_is_a_config():
    for study in STUDIES.values():
        for name, member in study.members.items():
            given = {"data.tokenizer_file": "tokenizer.json", "data.path": "corpus"}
            config = fields.override(base_config(), given | member)
            config.validate()
            assert config.data.path == member.get("data.path", "corpus"), name


def test_the_gap_is_that_between_poisoned_and_clean():
    losses = {"clean": 2.0, "letters; as it is": 3.0, "letters; both": 2.25}
    lines = [
        {"study": "poisoned", "member": member, "seed": seed, "loss": loss + seed / 100}
        for member, loss in losses.items()
        for seed in (0, 1)
    ]
    rows = table("poisoned", lines).splitlines()
    assert rows[2] == "| clean | 2.0050 ± 0.0635 | +0.00% |  | 2 |"
    assert rows[3] == "| letters; as it is | 3.0050 ± 0.0635 | +49.88% |  | 2 |"
    assert rows[4] == "| letters; both | 2.2550 ± 0.0635 | +12.47% | 75% | 2 |"
    # A seed that one of the three lacks does not count; without a base there is no gap.
    rows = table("poisoned", lines[:-1] + [lines[0] | {"seed": 2, "loss": 9}]).splitlines()
    assert rows[4] == "| letters; both | 2.2500 | +12.50% | 75% | 1 |"
    assert "| letters; both | 2.2550 ± 0.0635 |  |  | 2 |" in table("poisoned", lines[2:])
    alone = {"study": "augmentation", "member": "token_dropout, 5%", "epochs": 9, "seed": 0}
    assert "| 1.0000 |" in table("augmentation", [alone | {"train": 1, "loss": 2}])


def test_partitions_are_compared_with_the_hash_under_the_same_method():
    names = {
        "hash; each step": 4.0,
        "kmeans; each step": 4.1,
        "dictionary, natural; each step": 4.2,
        "hash; local SGD, H = 1, plain SGD": 5.0,
        "dictionary; local SGD, H = 1, plain SGD": 5.5,
    }
    lines = [
        {"study": "partitions", "member": name, "seed": 0, "loss": loss, "multiple": 7.0}
        for name, loss in names.items()
    ]
    first, second = table("partitions", lines).split("\n\n")
    assert "| kmeans | 7 | 4.1000 (+2.50%) |" in first
    assert "| dictionary, natural; each step | 7 | 4.2000 | +5.00% | 1 |" in second
    told = "| dictionary; local SGD, H = 1, plain SGD | 7 | 5.5000 | +10.00% | 1 |"
    assert told in second
