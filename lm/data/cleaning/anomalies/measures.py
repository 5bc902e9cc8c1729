"""Numbers that describe one text: Gopher's, and those by which damage shows.

Gopher's (Rae et al. 2021, A1.1) come with fixed limits, made for web pages: so many stop
words, so few symbols. Source code breaks most of them. So the limits are left out here;
anomaly.py compares each measure with those of the whole corpus.
"""

import random
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ftfy.badness import badness

PIECES, PIECE = 3, 16_000  # a longer text is measured in as many pieces of characters
HASHED = 32
FEW_LETTERS = 15
MOST_WORDS = 3000  # whose order is looked at
# Letters and digits without a break, as base64 and hexadecimal have them.
RUN = re.compile(r"[A-Za-z0-9+/_-]{32,}={0,2}")
BULLET = re.compile(r"\s*[-*•‣·]\s")
DAMAGE = re.compile("[\ufffd\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")
CLOSED = ".!?…。！？\"'”’)"  # what a finished sentence ends in


class Measures(NamedTuple):
    """Shares are of characters where nothing else is said."""

    log_characters: float
    log_line: float  # logarithm of the mean length of a line
    word_length: float
    letters: float
    digits: float
    spaces: float
    capitals: float
    wide: float  # share of bytes beyond ASCII
    symbols: float  # hash signs and ellipses for each word
    wordlike: float  # share of words with a letter
    bullets: float  # share of lines
    ellipses: float  # share of lines that end in one
    equal_lines: float  # share of lines that repeat an earlier one
    equal_text: float  # share of characters in such lines
    top_pair: float  # share of pairs of neighbouring words that are the commonest pair
    compressed: float  # size after zlib / size before
    entropy: float  # bits of a byte
    linked: float  # share of a letter's bits that the one before tells; random ones: 0
    ordered: float  # how often pairs of words repeat, in deviations of shuffled words
    encoded: float  # in base64, hexadecimal and the like
    damaged: float  # lost characters, control characters, mojibake
    end: float  # the text ends in 0 a line end, 1 a finished sentence, 2 a word, 3 else
    start: float  # it starts 0 at the beginning of a line or sentence, 1 in the middle
    unclosed: float  # 1: more brackets open than close; 0: equal; -1: fewer


def measure(text: str) -> Measures:
    """Return the measures of a text; an empty one is measured as one space."""
    part = pieces(text) or " "
    raw = part.encode(errors="surrogatepass")
    words = part.split() or [" "]
    lines = [line for line in part.splitlines() if line.strip()] or [" "]
    symbols = part.count("#") + part.count("...") + part.count("…")
    entropy, linked = entropies(raw)
    letters, digits, spaces, capitals, wide = byte_shares(raw)
    equal_lines, equal_text = repeated(lines)
    pairs = Counter(zip(words, words[1:], strict=False))
    runs = sum(len(run) for run in encoded_runs(part))
    end, start, unclosed = edges(text)
    return Measures(
        log_characters=float(np.log(max(len(text), 1))),
        log_line=float(np.log(len(part) / len(lines))),
        word_length=sum(map(len, words)) / len(words),
        letters=letters,
        digits=digits,
        spaces=spaces,
        capitals=capitals,
        wide=wide,
        symbols=symbols / len(words),
        wordlike=sum(any(map(str.isalpha, word)) for word in words) / len(words),
        bullets=sum(BULLET.match(line) is not None for line in lines) / len(lines),
        ellipses=sum(x.rstrip().endswith(("...", "…")) for x in lines) / len(lines),
        equal_lines=equal_lines,
        equal_text=equal_text,
        top_pair=max(pairs.values(), default=1) / len(words),
        compressed=len(zlib.compress(raw, 1)) / len(raw),
        entropy=entropy,
        linked=linked,
        ordered=order(words[:MOST_WORDS]),
        encoded=runs / len(part),
        damaged=min((len(DAMAGE.findall(part)) + mojibake(part)) / len(part), 1.0),
        end=end,
        start=start,
        unclosed=unclosed,
    )


def pieces(text: str) -> str:
    """Return the text, or pieces from its beginning, middle and end if it is long."""
    if len(text) <= PIECES * PIECE:
        return text
    starts = np.linspace(0, len(text) - PIECE, PIECES).astype(int)
    return "\n".join(text[start : start + PIECE] for start in starts)


def byte_shares(raw: bytes) -> tuple[float, ...]:
    """Return the shares of letters, digits, white space, capitals, and beyond ASCII."""
    counts = np.bincount(np.frombuffer(raw, np.uint8), minlength=256) / len(raw)
    capitals = counts[ord("A") : ord("Z") + 1].sum()
    letters = capitals + counts[ord("a") : ord("z") + 1].sum()
    digits = counts[ord("0") : ord("9") + 1].sum()
    return (
        letters,
        digits,
        counts[[9, 10, 11, 12, 13, 32]].sum(),
        capitals,
        counts[128:].sum(),
    )


def entropies(raw: bytes) -> tuple[float, float]:
    """Return the bits of a byte, and the share of a letter's that the one before tells.

    The second compares neighbours with shuffled neighbours: in a short text, even those
    seem to tell of each other. It is 1 where there are too few letters to tell.
    """
    x = np.frombuffer(raw.lower(), np.uint8).astype(np.int64)
    is_letter = (x >= ord("a")) & (x <= ord("z")) | (x >= 128)
    both = is_letter[:-1] & is_letter[1:]
    if both.sum() < FEW_LETTERS:
        return entropy(x), 1.0
    first, second = x[:-1][both] * 256, x[1:][both]
    shuffled = np.random.default_rng(0).permutation(second)
    alone = entropy(first)
    after, by_chance = entropy(first + second) - alone, entropy(first + shuffled) - alone
    return entropy(x), 1 - after / by_chance if by_chance else 1.0


def entropy(values: np.ndarray) -> float:
    counts = np.bincount(values)
    p = counts[counts > 0] / max(len(values), 1)
    return float(-(p * np.log2(p)).sum())


def hashed_pairs(raw: bytes) -> np.ndarray:
    """Return the frequency of pairs of bytes, float32[HASHED], hashed; its norm is 1."""
    x = np.frombuffer(raw, np.uint8).astype(np.int64)
    counts = np.bincount((x[:-1] * 31 + x[1:] * 17) % HASHED, minlength=HASHED)
    return np.sqrt(counts / max(counts.sum(), 1)).astype(np.float32)


def repeated(lines: Sequence[str]) -> tuple[float, float]:
    """Return the shares of lines, and of characters, that repeat an earlier line."""
    first = sum(map(len, set(lines)))
    total = sum(map(len, lines))
    return 1 - len(set(lines)) / len(lines), 1 - first / total


def order(words: Sequence[str]) -> float:
    """Return how much more often pairs of neighbours repeat than in a random order.

    The unit is the deviation of the count in a random order, which is about the root of its
    mean. Text whose words were shuffled has about 0, a text of 1,000 words 10 and more.
    """
    shuffled = list(words)
    random.Random(0).shuffle(shuffled)
    repeats, by_chance = (
        len(x) - 1 - len(set(zip(x, x[1:], strict=False))) for x in (words, shuffled)
    )
    return (repeats - by_chance) / (by_chance + 1) ** 0.5


def encoded_runs(text: str) -> list[str]:
    """Return the parts of a text that look like base64, base32 or hexadecimal.

    Long names and paths have few digits, or words of one case.
    """
    return [run for run in RUN.findall(text) if is_encoded(run)]


def is_encoded(run: str) -> bool:
    digits = sum(map(str.isdigit, run)) / len(run)
    capitals = sum(map(str.isupper, run)) / len(run)
    return digits > 0.04 and (0.15 < capitals < 0.85 or digits > 0.15)


def mojibake(text: str) -> int:
    return 0 if text.isascii() else badness(text)


def edges(text: str) -> tuple[float, float, float]:
    """Return the measures `end`, `start` and `unclosed`."""
    if text.endswith("\n") or not text:
        end = 0
    else:
        last = text[-1]
        end = 1 if last in CLOSED else 2 if last.isalnum() else 3
    start = not text[:1].strip() or text[:1].islower() or text[:1] in ",;:.)]}"
    balance = sum(map(text.count, "([{")) - sum(map(text.count, ")]}"))
    return float(end), float(start), float(np.sign(balance))
