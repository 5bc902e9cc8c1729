"""Uneven corpora: poisoned, of several kinds, of one common and one rare kind, and small.

Documents are pieces of what every environment of this project has (planted/base.py). Each
corpus is a folder of train/KIND/documents.jsonl and validation/KIND/documents.jsonl. All
share one tokenizer, learnt from the clean training text of all kinds, so that their losses
can be compared.
"""

import json
import pathlib
import random
import re
from collections.abc import Callable, Iterator

from tokenizers import Tokenizer

from experiments.processes.files import write_whole
from experiments.studies.planted import base, damage
from lm.data.tokenizer import train_tokenizer

VOCAB_SIZE = 1024
HELD_OUT = 10  # every tenth document of a kind
POISONED = 0.2  # share of the tokens of the poisoned corpus
RARE = 10  # times less text of the rare kind
SMALL = 10  # times less text in the small corpus
CHARACTERS = {  # of each kind, before some are held out
    "code": 4_000_000,
    "packages": 2_000_000,
    "prose": 800_000,
    "foreign": 500_000,
}
PIECES_OF_A_FILE = 10  # at most, so that a corpus is of many files
LICENSES = re.compile(r"LICEN[SC]E|COPYING")
Texts = dict[str, list[str]]  # kind -> its documents


def some(documents: Iterator[str], characters: int) -> list[str]:
    """Take documents until they have so many characters; ValueError if they end before."""
    found, left = [], characters
    for text in documents:
        found.append(text)
        left -= len(text)
        if left <= 0:
            return found
    raise ValueError(
        f"the installed packages have {characters - left} characters of a kind of text of "
        f"which {characters} are needed; install requirements-dev.txt"
    )


def clean_texts(rng: random.Random) -> Texts:
    """Return documents of each kind, as many characters as CHARACTERS says."""
    prose = base.files(base.PACKAGES, base.PROSE)
    files = {
        "code": base.files(base.LIBRARY, base.CODE, base.TESTS),
        "packages": base.files(base.PACKAGES, base.CODE, base.TESTS - {"site-packages"}),
        "prose": [file for file in prose if not LICENSES.match(file.name)],
    }
    streams = {kind: documents_of(found, rng) for kind, found in files.items()}
    streams["foreign"] = foreign(rng)
    return {kind: some(stream, CHARACTERS[kind]) for kind, stream in streams.items()}


def documents_of(files: list[pathlib.Path], rng: random.Random) -> Iterator[str]:
    """Yield some pieces of each file, the files in random order; equal pieces once."""
    seen = set()
    for file in rng.sample(files, len(files)):
        found = list(base.pieces(base.clean_text(file), rng))
        chosen = rng.sample(found, min(PIECES_OF_A_FILE, len(found)))
        yield from (text for text in chosen if text not in seen)
        seen.update(chosen)


def foreign(rng: random.Random) -> Iterator[str]:
    languages = [*base.catalogues().values()]
    while True:
        yield base.foreign_text(rng.choice(languages), rng)


POISONS = ("pieces", "letters", "base64", "shuffled")


def poison(kind: str, code: list[str], tokenizer: Tokenizer) -> list[str]:
    """Return bad documents that are POISONED of all tokens, if they join `code`.

    They are made of documents of `code`: their words in a random order (shuffled), their
    bytes in base64, or lines as long as theirs of random letters or of random pieces of
    words, those of the vocabulary.
    """
    rng = random.Random(0)
    words = [word for word in tokenizer.get_vocab() if word.isascii() and word.isalnum()]
    spoil: dict[str, Callable[[str], str]] = {
        "pieces": lambda text: pieces(text, sorted(words), rng),
        "letters": lambda text: damage.gibberish(text, rng),
        "base64": lambda text: damage.as_base64(text, rng),
        "shuffled": lambda text: damage.shuffled(text, rng),
    }

    def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    left = sum(map(count, code)) * POISONED / (1 - POISONED)
    found = []
    for text in rng.sample(code, len(code)):
        found.append(spoil[kind](text))
        left -= count(found[-1])
        if left <= 0:
            return found
    raise AssertionError("as many documents of poison as clean ones have fewer tokens")


def pieces(text: str, words: list[str], rng: random.Random) -> str:
    """Return lines about as long as those of `text` of random pieces of words."""
    lines = []
    for line in text.splitlines():
        made = ""
        while len(made) < len(line):
            made += rng.choice(words) + rng.choice([" ", ""])
        lines.append(made.strip())
    return "\n".join(lines) + "\n"


def split(documents: list[str]) -> tuple[list[str], list[str]]:
    held_out = documents[::HELD_OUT]
    return [x for i, x in enumerate(documents) if i % HELD_OUT], held_out


def write_kind(folder: pathlib.Path, kind: str, documents: list[str]) -> None:
    file = folder / kind / "documents.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": text}) + "\n" for text in documents)
    write_whole(file, "".join(lines))


def write_corpora(folder: pathlib.Path) -> None:
    """Write every corpus and the tokenizer into the folder, if they are not there."""
    if (folder / "tokenizer.json").exists():
        return
    rng = random.Random(0)
    parts = {kind: split(texts) for kind, texts in clean_texts(rng).items()}
    train, held_out = ({kind: both[i] for kind, both in parts.items()} for i in (0, 1))
    tokenizer = train_tokenizer(
        "bpe", (text for texts in train.values() for text in texts), VOCAB_SIZE
    )
    small = {"code": train["code"][::SMALL]}
    characters = sum(map(len, train["code"])) // RARE
    mixture = {"code": train["code"], "prose": some(iter(train["prose"]), characters)}
    corpora: dict[str, tuple[Texts, Texts]] = {
        "clean": ({"code": train["code"]}, {"code": held_out["code"]}),
        **{
            f"poison-{kind}": (
                {"code": train["code"], "poison": poison(kind, train["code"], tokenizer)},
                {"code": held_out["code"]},
            )
            for kind in POISONS
        },
        "kinds": (train, held_out),
        "mixture": (mixture, {"code": held_out["code"]}),
        "rare": ({}, {"prose": held_out["prose"]}),
        "small": (small, {"code": held_out["code"]}),
    }
    for name, (training, validation) in corpora.items():
        for kind, documents in training.items():
            write_kind(folder / name / "train", kind, documents)
        for kind, documents in validation.items():
            write_kind(folder / name / "validation", kind, documents)
    write_whole(folder / "tokenizer.json", tokenizer.to_str())
