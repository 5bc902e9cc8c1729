"""The planted corpus is what its truth says, by code of the tests' own."""

import itertools
import json
import random

import pytest

from experiments.studies.planted.plant import PLANTED, plant
from experiments.studies.planted.similar import altered
from tests.experiments.runs import run


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    run("studies.planted", "--seed=3", "--documents=60", f"--out={folder}/a")
    truth = json.loads((folder / "a" / "truth.json").read_text())
    lines = (folder / "a" / "corpus.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines], truth


def shingles(text: str) -> set[str]:
    words = text.split()
    return {" ".join(words[i : i + 5]) for i in range(len(words) - 4)}


def similarity(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def test_the_truth_of_each_document(planted):
    texts, truth = planted
    text_of = {e["document"]: t for e, t in zip(truth["documents"], texts, strict=True)}
    kinds = [e["kind"] for e in truth["documents"]]
    assert set(kinds) == {"clean", *PLANTED} and kinds.count("clean") == 60
    for number, entry in enumerate(truth["documents"], 1):
        assert entry["document"] == f"corpus.jsonl#{number}"
        text, kind, clean = texts[number - 1], entry["kind"], entry.get("clean")
        if kind in ("near_copy", "decoy"):
            original = shingles(text_of[entry["original"]])
            assert entry["jaccard"] == similarity(shingles(text), original)
            low, high = {"near_copy": (0.8, 0.95), "decoy": (0.5, 0.75)}[kind]
            assert low <= entry["jaccard"] <= high
        elif kind == "exact_copy":
            assert text == text_of[entry["original"]]
        elif kind == "mojibake":
            assert text != clean
            for _ in range(2 if entry["how"] == "double" else 1):
                text = bytes_of(text, entry["how"]).decode()
            assert text == clean
        elif kind == "shuffled":
            assert sorted(text.split()) == sorted(clean.split()) and text != clean
        elif kind == "truncated":
            assert clean.startswith(text) and (text[-1] + clean[len(text)]).isalpha()
        elif kind == "damaged":
            assert 0 < text.count("\ufffd") <= 0.05 * len(clean.encode())
        elif kind == "spans":
            for span in entry["spans"]:
                start, end = span["start"], span["end"]
                assert text[start:end] == "\ufffd" * (end - start)
                text = text[:start] + span["lost"] + text[end:]
            assert text == clean and "\ufffd" not in text


def bytes_of(text: str, how: str) -> bytes:
    """Undo a wrong decoding; bytes that Windows-1252 does not define stand as they are."""
    if how == "latin-1":
        return text.encode("latin-1")
    return b"".join(
        x.encode("latin-1") if "\x80" <= x <= "\x9f" else x.encode("cp1252") for x in text
    )


def test_only_copies_and_decoys_are_alike(planted):
    texts, truth = planted
    of = {e["document"]: e.get("original") for e in truth["documents"]}
    sets = dict(zip(of, map(shingles, texts), strict=True))
    by_hand = [
        [i, j, similarity(sets[i], sets[j])] for i, j in itertools.combinations(of, 2)
    ]
    by_hand = [pair for pair in by_hand if pair[2] >= 0.5]
    assert by_hand == truth["pairs"]
    assert all(of[i] == j or of[j] == i for i, j, _ in by_hand)
    assert len(by_hand) == sum(original is not None for original in of.values())


def test_a_copy_has_the_wanted_similarity_or_the_nearest_below():
    rng = random.Random(0)
    text = " ".join(f"w{i}" for i in range(300))
    found = [altered(text, 0.8, 0.95, ["x", "y"], rng)[1] for _ in range(40)]
    assert min(found) < 0.83 and max(found) > 0.92


def test_the_seed_decides_all(planted):
    assert plant(3, 60) == planted


def test_the_folder_must_be_given():
    result = run("studies.planted", "--seed=3", check=False)
    assert result.returncode == 2 and "no --out given" in result.stderr
