"""What happens to text: each function returns a damaged copy of a clean one."""

import base64
import random
import re
import string
import zlib
from collections.abc import Callable

LOST = "\ufffd"  # stands for a byte that could not be read
SPAN = 8  # most characters of a removed span


def read_as_cp1252(raw: bytes) -> str:
    """Decode as Windows-1252, with latin-1 for the five bytes that it does not define."""
    return "".join(
        bytes([byte]).decode("cp1252")
        if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
        else chr(byte)
        for byte in raw
    )


# UTF-8 that a program took for another encoding.
MOJIBAKE: dict[str, Callable[[str], str]] = {
    "latin-1": lambda text: text.encode().decode("latin-1"),
    "cp1252": lambda text: read_as_cp1252(text.encode()),
    "double": lambda text: read_as_cp1252(read_as_cp1252(text.encode()).encode()),
}


def gibberish(text: str, rng: random.Random) -> str:
    """Return lines as long as those of `text` of random letters, keys or characters."""
    alphabet = rng.choice(
        [
            string.ascii_lowercase + " " * 5,
            "asdfghjkl;qwertyuiop" + " " * 4,
            string.ascii_letters + string.digits + string.punctuation + " " * 12,
        ]
    )
    lines = ["".join(rng.choices(alphabet, k=len(x))) for x in text.splitlines()]
    end = "\n" if text.endswith("\n") else ""
    return "\n".join(line.rstrip() for line in lines).strip() + end


def as_base64(text: str, rng: random.Random) -> str:
    """Encode the text, packed or as it is, in lines of 76 characters."""
    raw = zlib.compress(text.encode()) if rng.random() < 0.5 else text.encode()
    encoded = base64.encodebytes(raw).decode()
    return encoded if text.endswith("\n") else encoded.rstrip("\n")


def shuffled(text: str, rng: random.Random) -> str:
    """Exchange the words of a text; the white space between them stays where it was."""
    parts = re.split(r"(\s+)", text)
    places = [i for i, part in enumerate(parts) if part.strip()]
    words = [parts[i] for i in places]
    rng.shuffle(words)
    for place, word in zip(places, words, strict=True):
        parts[place] = word
    return "".join(parts)


def truncated(text: str, rng: random.Random) -> str:
    """Cut inside a word, after a fifth to four fifths of the text."""
    words = [match for match in re.finditer(r"[^\W\d_]{4,}", text)]
    wanted = rng.uniform(0.2, 0.8) * len(text)
    word = min(words, key=lambda match: abs(match.start() - wanted))
    return text[: rng.randint(word.start() + 1, word.end() - 1)]


def bytes_lost(text: str, rng: random.Random) -> str:
    """Replace 0.5 to 5 % of the bytes by one that is no UTF-8, and decode what is left."""
    raw = bytearray(text.encode())
    for place in rng.sample(
        range(len(raw)), max(1, int(rng.uniform(5e-3, 0.05) * len(raw)))
    ):
        raw[place] = 0xFF
    return raw.decode(errors="replace")


def spans_lost(text: str, num: int, rng: random.Random) -> tuple[str, list[dict]]:
    """Replace `num` short words, or beginnings of long ones, by one LOST a character.

    Returns the text, and of each span its first character, its end and what stood there.
    """
    words = [m for m in re.finditer(r"[a-zA-Z_]{3,}", text) if 0 < m.start()]
    spans = []
    for match in sorted(rng.sample(words, num), key=lambda match: match.start()):
        start, end = match.start(), min(match.end(), match.start() + SPAN)
        spans.append({"start": start, "end": end, "lost": text[start:end]})
        text = text[:start] + LOST * (end - start) + text[end:]
    return text, spans
