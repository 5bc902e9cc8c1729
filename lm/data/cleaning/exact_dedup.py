"""Drop documents whose text is equal to that of an earlier document."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lm.data.cleaning.stage import Applied, Copy, Finding
from lm.data.sources.corpus import Document

NO_WORD = re.compile(r"[\W_]+")


@dataclass
class ExactDedupConfig:
    # which documents are equal: those of the same text, or of the same words, where case,
    # punctuation and white space do not count
    same: str = field(default="text", metadata={"choices": ("text", "words")})


def only_words(text: str) -> str:
    """Return the letters and digits of a text, in lower case, and nothing between them.

    A text without any stays as it is: two different ones are not equal.
    """
    return NO_WORD.sub("", text.casefold()) or text


def digest(text: str) -> int:
    """Return 64 bits that two different texts share once in 10^19 pairs."""
    raw = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(raw, "big")


def sketch(config: ExactDedupConfig, document: Document) -> tuple[int, str]:
    text = document.text if config.same == "text" else only_words(document.text)
    return digest(text), document.name


def decide(
    config: ExactDedupConfig, sketches: Sequence[tuple[int, str]]
) -> list[Copy | None]:
    """Return a Copy of the first document of the same digest; None for that first one."""
    digests = np.fromiter((each[0] for each in sketches), np.uint64, len(sketches))
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    return [
        None if first[g] == place else Copy(int(first[g]), sketches[first[g]][1], 1.0)
        for place, g in enumerate(group)
    ]


def apply(config: ExactDedupConfig, document: Document, verdict: Copy | None) -> Applied:
    if verdict is None:
        return document, []
    reason = f"the {config.same} of it and of {verdict.name} are equal"
    return None, [Finding(document.name, "exact_duplicate", 1.0, reason)]
