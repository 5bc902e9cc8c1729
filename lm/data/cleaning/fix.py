"""Repair characters that a wrong decoding spoilt, and drop those that mean nothing.

Mojibake is UTF-8 that was decoded as another encoding: "café" becomes "cafÃ©". Encoding
the text back and decoding it as UTF-8 restores every byte. ftfy knows which texts look like
mojibake, and its codecs also map the bytes that windows-1252 leaves undefined. None of
ftfy's other repairs (quotes, entities, ligatures, widths) is used: in source code each of
them can change what a program does.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import ftfy.bad_codecs
from ftfy.badness import is_bad
from ftfy.chardata import CHARMAP_ENCODINGS
from ftfy.fixes import fix_c1_controls, remove_terminal_escapes

from lm.data.cleaning.stage import Finding
from lm.data.sources.corpus import Document

ftfy.bad_codecs.ok()  # importing it registers the codecs sloppy-windows-125x

ROUNDS = 3  # text may have been decoded wrongly more than once
# So many characters that happen to be valid UTF-8 are no accident, however they look.
SURE = 4
# The first byte of most accented letters, decoded as Latin-1. Capitals with a tilde are
# rare, and before a symbol rarer; ftfy does not trust them alone.
LEAD = "Ã"
WEST = ("latin-1", "sloppy-windows-1252")
SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
SURROGATE = re.compile("[\ud800-\udfff]")
C1_CONTROL = re.compile("[\x80-\x9f]")
# Tabs, line ends and form feeds stay: code has form feeds between its parts. U+0085 is a
# line end, and so are the others that normalise.py takes.
CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f]")
BYTE_ORDER_MARK = "\ufeff"
LOST = "\ufffd"  # the replacement character


@dataclass
class FixConfig:
    # restore text whose bytes were decoded as a wrong encoding
    mojibake: bool = True
    # drop control characters, terminal escapes and byte-order marks inside the text
    controls: bool = True


class Change(NamedTuple):
    kind: str
    count: int  # of characters
    account: str  # what was changed, in words


Repaired = tuple[str, list[Change]]


def fix(
    config: FixConfig, document: Document, verdict: None = None
) -> tuple[Document | None, list[Finding]]:
    """Return the repaired document, or None if no text is left; and what was changed.

    The score of a finding is the share of the document's characters that were changed.
    Replacement characters (U+FFFD) are counted and stay: what they replaced is not known.
    """
    text, changes = fix_surrogates(document.text)  # first: they cannot be encoded
    if config.mojibake:  # before control characters go, since some are parts of mojibake
        text, found = fix_mojibake(text)
        changes += found
    if config.controls:
        text, found = fix_controls(text)
        changes += found
    if lost := text.count(LOST):
        changes.append(Change("lost_characters", lost, f"{lost} replacement characters"))
    size = max(len(document.text), 1)
    if not text.strip():
        account = f"no text in {len(document.text)} characters"
        changes.append(Change("empty", size, account))
    return document._replace(text=text) if text.strip() else None, [
        Finding(document.name, x.kind, min(x.count / size, 1.0), x.account) for x in changes
    ]


def fix_surrogates(text: str) -> Repaired:
    """Join surrogates that are a pair; a lone one becomes a replacement character."""
    surrogates = len(SURROGATE.findall(text)) if not text.isascii() else 0
    if not surrogates:
        return text, []
    joined, pairs = SURROGATE_PAIR.subn(join_surrogates, text)
    text, alone = SURROGATE.subn(LOST, joined)
    account = f"{pairs} pairs joined, {alone} lone ones replaced"
    return text, [Change("surrogates", surrogates, account)]


def join_surrogates(pair: re.Match[str]) -> str:
    return pair[0].encode("utf-16", "surrogatepass").decode("utf-16")


def fix_mojibake(text: str) -> Repaired:
    """Decode mojibake anew: the whole text if it is all mojibake, else its bad lines.

    A text that is mojibake as a whole is valid UTF-8 once it is encoded back. Text that was
    meant to be so hardly ever is: after a letter with an accent, UTF-8 needs a symbol.
    """
    if text.isascii():
        return text, []
    changes: list[Change] = []
    for _ in range(ROUNDS):
        fixed, encoding = restore(text, CHARMAP_ENCODINGS)
        if fixed is None:
            fixed, encoding = restore_lines(text), "one byte a character in some lines"
        if fixed == text:
            break
        count = non_ascii(text) - non_ascii(fixed)
        before, after = first_difference(text, fixed)
        account = f"UTF-8 was decoded as {encoding}; {before!r} is {after!r} again"
        changes.append(Change("mojibake", count, account))
        text = fixed
    if C1_CONTROL.search(text):  # windows-1252 that was decoded as Latin-1
        fixed = fix_c1_controls(text)
        before, after = first_difference(text, fixed)
        account = f"windows-1252 was decoded as latin-1; {before!r} is {after!r} again"
        changes.append(Change("mojibake", len(C1_CONTROL.findall(text)), account))
        text = fixed
    return text, changes


def restore(text: str, encodings: Iterable[str]) -> tuple[str | None, str]:
    """Return the text whose UTF-8 was decoded as one of the encodings, and which one.

    Returns (None, "") if it is mojibake of none of them, or plain ASCII.
    """
    if LOST in text:  # bytes are missing, and the codecs "sloppy" encode it as another one
        return None, ""
    for encoding in encodings:
        try:
            fixed = text.encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
        if fixed != text and (
            non_ascii(fixed) >= SURE or LEAD in text or is_bad(text)  # the slowest last
        ):
            return fixed, encoding
    return None, ""


def restore_lines(text: str) -> str:
    """Restore each line that is mojibake as a whole; the text itself if they are few.

    A single line may show mojibake on purpose, as the test of a decoder does.
    """
    lines = text.split("\n")
    found: set[str] = set()
    for i, line in enumerate(lines):
        if not line.isascii() and is_bad(line):
            lines[i] = restore(line, WEST)[0] or line
            found.update(lines[i] if lines[i] != line else "")
    sure = sum(not x.isascii() for x in found) >= SURE
    return "\n".join(lines) if sure and LOST not in found else text


def fix_controls(text: str) -> Repaired:
    """Drop terminal escapes, control characters, and byte-order marks inside the text."""
    changes = []
    if "\x1b" in text:
        shorter = remove_terminal_escapes(text)
        if count := len(text) - len(shorter):
            account = f"{count} characters of terminal escapes dropped"
            changes.append(Change("terminal_escapes", count, account))
        text = shorter
    text, count = CONTROL.subn("", text)
    if count:
        account = f"{count} control characters dropped"
        changes.append(Change("control_characters", count, account))
    if count := text.count(BYTE_ORDER_MARK, 1):  # clean.py drops the first character's
        text = text[0] + text[1:].replace(BYTE_ORDER_MARK, "")
        account = f"{count} byte-order marks dropped"
        changes.append(Change("byte_order_mark", count, account))
    return text, changes


def non_ascii(text: str) -> int:
    return len(text) - len(text.encode("ascii", "ignore"))


def first_difference(before: str, after: str, width: int = 12) -> tuple[str, str]:
    """Return what stands in both texts from shortly before where they first differ."""
    pairs = enumerate(zip(before, after, strict=False))
    start = next((i for i, (x, y) in pairs if x != y), 0)
    start = max(start - width // 2, 0)
    return before[start : start + width], after[start : start + width]
