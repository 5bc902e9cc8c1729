"""A corpus of any size from the Python files that every environment of this project has."""

import json
import keyword
import pathlib
import random
import re
import sysconfig
from collections.abc import Iterator

WORD = re.compile(r"[A-Za-z_]\w+")
KEPT = frozenset(keyword.kwlist)
LONGEST = 1 << 20  # bytes of a file; longer ones are tables of data


def sources() -> list[pathlib.Path]:
    """List the files of the standard library and of installed packages."""
    folders = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}
    found = {file for each in folders for file in pathlib.Path(each).rglob("*.py")}
    return sorted(file for file in found if 0 < file.stat().st_size <= LONGEST)


def altered(text: str, seed: str) -> str:
    """Give the words of a text to each other, but not the words of Python.

    Each word stands for another one of the same text throughout, by a permutation of the
    seed. So sizes and statistics stay, while hardly five words in a row do.
    """
    words = sorted(set(WORD.findall(text)) - KEPT)
    others = random.Random(seed).sample(words, len(words))
    given = dict(zip(words, others, strict=True))
    return WORD.sub(lambda match: given.get(match[0], match[0]), text)


def documents() -> Iterator[str]:
    """Yield texts without end: the files as they are, then altered by seed 1, 2, ..."""
    files, seed = sources(), 0
    while True:
        for file in files:
            text = file.read_text(encoding="utf-8", errors="replace")
            yield altered(text, f"{seed} {file}") if seed else text
        seed += 1


def write_corpus(folder: pathlib.Path, megabytes: int) -> pathlib.Path:
    """Write a file of JSON lines with so much text, if it is not there; return it."""
    file = folder / f"python-{megabytes}.jsonl"
    if file.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    partial, left = file.with_suffix(".partial"), megabytes * 10**6
    with partial.open("w", encoding="utf-8") as out:
        for text in documents():
            out.write(json.dumps({"text": text}) + "\n")
            left -= len(text.encode(errors="surrogatepass"))
            if left <= 0:
                break
    partial.rename(file)
    return file


def first_texts(file: pathlib.Path, num_bytes: int) -> list[str]:
    """Return the first texts of a file, up to about so many bytes."""
    texts = []
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            num_bytes -= len(texts[-1].encode(errors="surrogatepass"))
            if num_bytes <= 0:
                break
    return texts
