"""Clean text to plant faults in: pieces of what every environment of this project has.

Code is from the modules of the standard library, prose from the descriptions, licences and
notes of installed packages, and text in other languages from Django's catalogues. The same
environment gives the same pieces.
"""

import gettext
import os
import random
import re
import sysconfig
import unicodedata
from collections.abc import Iterator, Set
from pathlib import Path

LIBRARY = Path(sysconfig.get_path("stdlib"))
PACKAGES = Path(sysconfig.get_path("purelib"))
LEAST_MESSAGE = 12  # characters; single words say little of their language
LEAST_WORDS, MOST_WORDS = 120, 400  # in a piece
PROSE = re.compile(r"METADATA|.*\.(rst|md)|(LICEN[SC]E|COPYING)[^/]*")
CODE = re.compile(r".*\.py")
TESTS = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
# Some share the letters of English, some do not.
LANGUAGES = ("de", "fr", "es", "nl", "pl", "tr", "ru", "el", "zh_Hans", "ja", "ar", "he")
LATIN = LANGUAGES[:6]
APOSTROPHE = "\u2019"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffd]")


def files(
    folder: Path, pattern: re.Pattern[str], skip: Set[str] = frozenset()
) -> list[Path]:
    """List the files below a folder whose names match, without those in some folders."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - skip)
        found += [Path(place, name) for name in sorted(names) if pattern.fullmatch(name)]
    return found


def clean_text(file: Path) -> str:
    """Return a file's text without trailing white space; "" if the text is not clean.

    The headers of METADATA are left out.
    """
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError:
        return ""
    if file.name == "METADATA":
        text = text.partition("\n\n")[2]
    lines = [line.rstrip() for line in text.splitlines()]
    text = "\n".join(lines).strip("\n")
    unclean = CONTROL.search(text) or unicodedata.normalize("NFC", text) != text
    return "" if unclean else text


def pieces(text: str, rng: random.Random) -> Iterator[str]:
    """Cut a text at line ends into pieces of LEAST_WORDS to MOST_WORDS words.

    A piece ends at the first blank line after a random number of words.
    """
    lines: list[str] = []
    count, wanted = 0, rng.randint(LEAST_WORDS, MOST_WORDS)
    for line in [*text.splitlines(), ""]:
        words = len(line.split())
        if count + words > MOST_WORDS or not words and count >= wanted:
            if LEAST_WORDS <= count <= MOST_WORDS:
                yield "\n".join(lines).strip("\n") + "\n"
            lines, count, wanted = [], 0, rng.randint(LEAST_WORDS, MOST_WORDS)
        lines.append(line)
        count += words


def pool(sources: list[Path], num: int, rng: random.Random) -> list[str]:
    """Return `num` pieces of files, or fewer if there are none, in random order.

    Equal pieces count once. Half of the files' pieces are left out, so that fewer pieces
    are not of few files.
    """
    found: dict[str, None] = {}
    for file in rng.sample(sources, len(sources)):
        found |= dict.fromkeys(pieces(clean_text(file), rng))
        if len(found) >= 2 * num:
            break
    return rng.sample(list(found), min(num, len(found)))


def catalogues() -> dict[str, list[str]]:
    """Return the translations in Django's catalogues for each of LANGUAGES."""
    found: dict[str, dict[str, None]] = {name: {} for name in LANGUAGES}
    for file in files(PACKAGES / "django", re.compile(r"django(js)?\.mo")):
        language = file.parts[-3]
        if language in found:
            with file.open("rb") as stream:
                catalogue = gettext.GNUTranslations(stream)._catalog
            found[language] |= dict.fromkeys(
                unicodedata.normalize("NFC", text)
                for key, text in catalogue.items()
                if key and len(text) > LEAST_MESSAGE and not CONTROL.search(text)
            )
    if missing := [name for name in LANGUAGES if not found[name]]:
        raise ValueError(
            f"Django has no catalogue in {', '.join(missing)}; install it by pip install "
            "-r requirements-pairs.txt"
        )
    return {name: list(texts) for name, texts in found.items()}


def foreign_text(language: list[str], rng: random.Random) -> str:
    """Return 30 translations of a language, one in a line."""
    return ended("\n".join(rng.sample(language, min(30, len(language)))), rng)


def ended(text: str, rng: random.Random) -> str:
    """End a text with a line end or without one, by chance, so that it tells nothing."""
    return text.strip("\n") + rng.choice(["\n", ""])


def typographic(text: str) -> str:
    """Write the quotation marks and dashes of English text as a printer would."""
    text = re.sub(r'(?<=\s)"(?=\S)', "\u201c", text)
    text = re.sub(r'(?<=\S)"(?=[\s.,;:)])', "\u201d", text)
    text = re.sub(r"(?<=\w)'(?=\w)", APOSTROPHE, text)
    return re.sub(r"(?<=\w) --? (?=\w)", " \u2013 ", text)
