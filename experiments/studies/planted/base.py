"""Clean text to plant faults in: pieces of what every environment of this project has.

Code is from the modules of the standard library, prose from the descriptions, licences and
notes of installed packages, and text in other languages from Django's catalogues. The same
environment gives the same pieces.
"""

import gettext
import os
import pathlib
import random
import re
import sysconfig
import unicodedata
from collections.abc import Iterator

LEAST_WORDS, MOST_WORDS = 120, 400  # in a piece
PROSE = re.compile(r"METADATA|.*\.(rst|md)|(LICEN[SC]E|COPYING)[^/]*")
TESTS = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
# Some share the letters of English, some do not.
LANGUAGES = ("de", "fr", "es", "nl", "pl", "tr", "ru", "el", "zh_Hans", "ja", "ar", "he")
LATIN = LANGUAGES[:6]
APOSTROPHE = "\u2019"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffd]")


def code_files() -> list[pathlib.Path]:
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    files = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return [folder / path for path in sorted(files) if not TESTS & set(path.parts)]


def prose_files() -> list[pathlib.Path]:
    folder = sysconfig.get_path("purelib")
    return sorted(
        pathlib.Path(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if PROSE.fullmatch(name)
    )


def clean_text(file: pathlib.Path) -> str:
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
    return (
        "" if CONTROL.search(text) or unicodedata.normalize("NFC", text) != text else text
    )


def pieces(text: str, rng: random.Random) -> Iterator[str]:
    """Cut a text at line ends into pieces of LEAST_WORDS to MOST_WORDS words.

    A piece ends at the first blank line after a random number of words.
    """
    lines: list[str] = []
    count, wanted = 0, rng.randint(LEAST_WORDS, MOST_WORDS)
    for line in text.splitlines():
        words = len(line.split())
        if lines and count >= LEAST_WORDS and count + words > MOST_WORDS:
            yield "\n".join(lines).strip("\n") + "\n"
            lines, count, wanted = [], 0, rng.randint(LEAST_WORDS, MOST_WORDS)
        lines.append(line)
        count += words
        if count > MOST_WORDS:
            lines, count = [], 0  # a line without end, such as a table of data
        elif not words and count >= wanted:
            yield "\n".join(lines).strip("\n") + "\n"
            lines, count, wanted = [], 0, rng.randint(LEAST_WORDS, MOST_WORDS)
    if count >= LEAST_WORDS:
        yield "\n".join(lines).strip("\n") + "\n"


def pool(files: list[pathlib.Path], num: int, rng: random.Random) -> list[str]:
    """Return `num` pieces of files, or fewer if there are none, in random order.

    Equal pieces count once. Half of the files' pieces are left out, so that fewer pieces
    are not of few files.
    """
    found: dict[str, None] = {}
    for file in rng.sample(files, len(files)):
        found |= dict.fromkeys(pieces(clean_text(file), rng))
        if len(found) >= 2 * num:
            break
    return rng.sample(list(found), min(num, len(found)))


def messages(language: str) -> list[str]:
    """Return the translations in Django's catalogues, in their order."""
    folder = pathlib.Path(sysconfig.get_path("purelib")) / "django"
    found: dict[str, None] = {}
    for file in sorted(folder.rglob(f"locale/{language}/LC_MESSAGES/*.mo")):
        with file.open("rb") as stream:
            catalogue = gettext.GNUTranslations(stream)._catalog
        found |= dict.fromkeys(
            text
            for key, text in catalogue.items()
            if key and len(text.split()) + len(text) // 12 >= 3 and not CONTROL.search(text)
        )
    if not found:
        raise ValueError(
            f"Django's catalogues in {language!r} are not in {folder}; install them by "
            "pip install -r requirements-pairs.txt"
        )
    return [unicodedata.normalize("NFC", text) for text in found]


def foreign_text(language: list[str], rng: random.Random) -> str:
    """Return 30 translations of a language, one in a line."""
    return "\n".join(rng.sample(language, min(30, len(language)))).strip() + "\n"


def typographic(text: str) -> str:
    """Write the quotation marks and dashes of English text as a printer would."""
    text = re.sub(r'(?<=\s)"(?=\S)', "\u201c", text)
    text = re.sub(r'(?<=\S)"(?=[\s.,;:)])', "\u201d", text)
    text = re.sub(r"(?<=\w)'(?=\w)", APOSTROPHE, text)
    return re.sub(r"(?<=\w) --? (?=\w)", " \u2013 ", text)
