"""Damage of every kind, planted into texts. It shares no code with the detectors."""

import base64
import gettext
import pathlib
import random
import re
import string

import django
import numpy as np

LANGUAGES = ("de", "fr", "pl", "ru", "zh_Hans", "es", "tr", "fi", "nl", "ja")
KINDS = ("gibberish", "language", "base64", "shuffled", "encoding", "truncated")


def catalogue(language: str) -> list[str]:
    """Return the translated messages that come with Django."""
    texts: list[str] = []
    for file in sorted(pathlib.Path(django.__file__).parent.rglob("*.mo")):
        if file.parts[-3] == language:
            with file.open("rb") as stream:
                messages = gettext.GNUTranslations(stream)._catalog
            texts += [x for key, x in messages.items() if key and len(x) > 20]
    return texts


def gibberish(text: str, rng: random.Random, style: int) -> str:
    """Random words; random characters; the text's own, mixed; random letters in place."""
    size = len(text)
    letters = string.ascii_lowercase
    if style == 0:
        words = (
            "".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(size // 6)
        )
        return " ".join(words) + "\n"
    if style == 1:
        return "".join(rng.choices(string.printable[:95] + "\n", k=size))
    if style == 2:
        return "".join(rng.sample(text, size))
    return "".join(rng.choice(letters) if x.isalpha() else x for x in text)


def foreign(text: str, rng: random.Random, style: int) -> str:
    messages = catalogue(LANGUAGES[style])
    chosen = (rng.choice(messages) for _ in range(len(text) // 60 + 5))
    return "\n".join(chosen)[: max(len(text), 300)] + "\n"


def encoded(text: str, rng: random.Random, style: int) -> str:
    raw = text.encode() if style % 2 else rng.randbytes(len(text))
    return (base64.encodebytes if style < 2 else base64.b64encode)(raw).decode()


def shuffled(text: str, rng: random.Random, style: int) -> str:
    """The words in another order, on one line or in the text's own white space."""
    words = text.split()
    rng.shuffle(words)
    if style % 2:
        return " ".join(words) + "\n"
    following = iter(words)
    return re.sub(r"\S+", lambda _: next(following), text)


def damaged(text: str, rng: random.Random, style: int) -> str:
    """One character in a hundred is lost."""
    found = list(text)
    for place in rng.sample(range(len(found)), len(found) // 100 + 3):
        found[place] = "\ufffd"
    return "".join(found)


def truncated(text: str, rng: random.Random, style: int) -> str:
    return text[: rng.randint(len(text) // 3, len(text) * 2 // 3)].rstrip()


PLANT = dict(
    zip(KINDS, (gibberish, foreign, encoded, shuffled, damaged, truncated), strict=True)
)


def plant(texts: list[str], each: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Return the texts, `each` of them damaged in each way, and the kind of every one."""
    rng, texts = random.Random(seed), list(texts)
    kinds = np.full(len(texts), "clean", object)
    for number, place in enumerate(rng.sample(range(len(texts)), each * len(KINDS))):
        kind = KINDS[number % len(KINDS)]
        style = number // len(KINDS) % (len(LANGUAGES) if kind == "language" else 4)
        texts[place] = PLANT[kind](texts[place], rng, style)
        kinds[place] = kind
    return texts, kinds
