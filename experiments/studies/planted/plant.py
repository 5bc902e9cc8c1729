"""A corpus in which faults are planted, and the truth about each document."""

import hashlib
import random
from collections.abc import Iterator
from typing import NamedTuple

from experiments.studies.planted import base, damage
from experiments.studies.planted.similar import all_pairs, altered, unlike

FILE = "corpus.jsonl"
# Documents of each kind to 3,000 clean ones; `spans` has two removed spans in each.
PLANTED = {
    "exact_copy": 150,
    "near_copy": 200,
    "decoy": 100,  # alike, but not so alike as a copy
    "mojibake": 120,
    "gibberish": 60,
    "language": 60,
    "base64": 60,
    "shuffled": 60,
    "truncated": 60,
    "damaged": 60,
    "spans": 250,
}
CLEAN = 3000
DAMAGES = {
    "gibberish": damage.gibberish,
    "base64": damage.as_base64,
    "shuffled": damage.shuffled,
    "truncated": damage.truncated,
    "damaged": damage.bytes_lost,
}
NEAR, DECOY = (0.8, 0.95), (0.5, 0.75)  # Jaccard similarities, lowest and highest
CHANCE = 0.2  # no two clean documents are more similar
SPANS = 2
PROSE_SHARE = 0.25
TYPOGRAPHIC_SHARE = 0.2  # of clean prose


class Planted(NamedTuple):
    kind: str
    text: str
    truth: dict  # what the kind has to tell besides
    of: int | None = None  # the number of the original, for a copy


def clean_documents(least: int, num: int, rng: random.Random) -> list[str]:
    """Return `num` clean documents, no two of them alike, or as many as there are.

    Raises ValueError if there are fewer than `least`.
    """
    num_prose = int(PROSE_SHARE * num)
    # Licences are much alike, so that fewer remain than are read.
    prose = base.pool(base.files(base.PACKAGES, base.PROSE), 2 * num_prose + 20, rng)
    prose = unlike(prose, CHANCE)[:num_prose]
    for i in range(int(TYPOGRAPHIC_SHARE * len(prose))):
        prose[i] = base.typographic(prose[i])
    code = base.pool(
        base.files(base.LIBRARY, base.CODE, base.TESTS), int(1.2 * num) + 20, rng
    )
    found = unlike([*prose, *code], CHANCE)[:num]
    if len(found) < least:
        raise ValueError(
            f"the installed packages have {len(found)} documents that are not alike, and "
            f"{least} are needed; give a smaller --documents"
        )
    rng.shuffle(found)
    return [base.ended(text, rng) for text in found]


def to_garble(
    spare: Iterator[str], languages: dict[str, list[str]], rng: random.Random
) -> str:
    """Return text with characters outside ASCII: printed English, or another language."""
    printed = map(base.typographic, spare if rng.random() < 0.5 else ())
    for text in printed:
        if text.count(base.APOSTROPHE) > 1:
            return text
    text = ""
    while text.isascii():
        text = base.foreign_text(languages[rng.choice([*base.LATIN, "ru"])], rng)
    return text


def faults(
    spare: Iterator[str], originals: list[str], count: dict[str, int], rng: random.Random
) -> Iterator[Planted]:
    """Yield the documents with a fault; a text serves for one of them at most."""
    languages = base.catalogues()
    words = " ".join(originals).split()
    chosen = iter(rng.sample(range(len(originals)), len(originals)))
    for _ in range(count["exact_copy"]):
        of = next(chosen)
        yield Planted("exact_copy", originals[of], {"jaccard": 1.0}, of)
    for kind, bounds in (("near_copy", NEAR), ("decoy", DECOY)):
        for _ in range(count[kind]):
            of = next(chosen)
            text, similarity = altered(originals[of], *bounds, words, rng)
            yield Planted(kind, text, {"jaccard": similarity}, of)
    for i in range(count["language"]):
        name = base.LANGUAGES[i % len(base.LANGUAGES)]
        text = base.foreign_text(languages[name], rng)
        yield Planted("language", text, {"how": name})
    for kind, harm in DAMAGES.items():
        for _ in range(count[kind]):
            clean = next(spare)
            yield Planted(kind, harm(clean, rng), {"clean": clean})
    for _ in range(count["spans"]):
        clean = next(spare)
        text, spans = damage.spans_lost(clean, SPANS, rng)
        yield Planted("spans", text, {"clean": clean, "spans": spans})
    for i in range(count["mojibake"]):
        how = list(damage.MOJIBAKE)[i % len(damage.MOJIBAKE)]
        clean = to_garble(spare, languages, rng)
        yield Planted("mojibake", damage.MOJIBAKE[how](clean), {"how": how, "clean": clean})


def plant(seed: int, num_clean: int) -> tuple[list[str], dict]:
    """Return the texts of a corpus, in order, and the truth about them.

    The truth lists the documents by name, and all pairs that are similar by brute force.
    Other seeds choose other pieces of text, other faults and another order.
    """
    rng = random.Random(seed)
    count = {kind: -(-num * num_clean // CLEAN) for kind, num in PLANTED.items()}
    if num_clean < sum(count[kind] for kind in ("exact_copy", "near_copy", "decoy")):
        raise ValueError(f"--documents={num_clean}: there are fewer originals than copies")
    damaged = sum(count[kind] for kind in DAMAGES) + count["spans"] + count["mojibake"]
    # Few texts can be garbled, because most have no character outside ASCII.
    further = 3 * count["mojibake"]
    found = clean_documents(num_clean + damaged, num_clean + damaged + further, rng)
    clean, spare = found[:num_clean], iter(found[num_clean:])
    every = [Planted("clean", text, {}) for text in clean]
    every += faults(spare, clean, count, rng)
    order = rng.sample(range(len(every)), len(every))
    texts = [every[number].text for number in order]
    pairs = [[name(i), name(j), s] for i, j, s in all_pairs(texts, DECOY[0])]
    return texts, {"seed": seed, "documents": entries(every, order), "pairs": pairs}


def entries(every: list[Planted], order: list[int]) -> list[dict]:
    """Return the truth of each document, in the order in which they are written."""
    place = {number: i for i, number in enumerate(order)}
    found = []
    for i, number in enumerate(order):
        kind, text, truth, of = every[number]
        original = {} if of is None else {"original": name(place[of])}
        head = {"document": name(i), "kind": kind, "digest": digest(text)}
        found.append(head | original | truth)
    return found


def name(index: int) -> str:
    """Return the name of a document: the file and the line, as a user would write it."""
    return f"{FILE}#{index + 1}"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
