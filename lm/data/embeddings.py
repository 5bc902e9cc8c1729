"""Word vectors: read and written in word2vec's text format, and the neighbours of a token.

The first line is `COUNT DIMENSIONS`; each line after it is a token and its numbers, with
spaces between them (Mikolov et al. 2013, https://code.google.com/archive/p/word2vec).

A token of the vocabulary is looked up by its own name, as a file written here has it, and
else by its text without the spaces around it: " self" finds the vector of "self".
"""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from tokenizers import Tokenizer


class Vectors(NamedTuple):
    """Vectors for some tokens of a vocabulary."""

    ids: np.ndarray  # int32[n]
    vectors: np.ndarray  # float32[n, D]


@contextlib.contextmanager
def reading(file: str) -> Iterator[BinaryIO]:
    """Open a file of vectors; ValueError if it cannot be read."""
    try:
        with open(os.path.expanduser(file), "rb") as stream:
            yield stream
    except OSError as error:
        raise ValueError(f"model.embeddings {file!r} cannot be read ({error})") from None


def digest(file: str) -> str:
    """Return a hash of the content; ValueError if it cannot be read."""
    with reading(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def read_header(file: str, width: int) -> int:
    """Return the number of vectors; ValueError if their length is not `width`."""
    with reading(file) as stream:
        line = stream.readline(200).decode("utf-8", "replace").split()
    if len(line) != 2 or not all(number.isdigit() for number in line):
        raise ValueError(
            f"{file} is not in word2vec's text format: its first line is "
            f"{' '.join(line)[:40]!r}; expected the number of vectors and their length"
        )
    count, length = map(int, line)
    if length != width:
        raise ValueError(
            f"{file} has vectors of {length} numbers, but model.width is {width}; give "
            "another file or width"
        )
    return count


def read_lines(file: str, width: int) -> Iterator[tuple[int, str, str]]:
    """Yield the number of each line, its token, and the text of its vector."""
    count = read_header(file, width)
    path = os.path.expanduser(file)
    with open(path, encoding="utf-8", errors="replace", newline="\n") as stream:
        stream.readline()
        number = 1
        for number, line in enumerate(stream, 2):
            token, _, rest = line.partition(" ")
            yield number, token, rest
    if number - 1 != count:
        raise ValueError(
            f"{file} has {number - 1} vectors, but its first line says {count}; it is cut "
            "off or damaged"
        )


def read_vectors(file: str, tokenizer: Tokenizer, width: int) -> Vectors:
    """Return the vectors of the tokens that a file names; ValueError if it names none."""
    own = tokenizer.get_vocab()
    by_text: dict[str, list[int]] = {}
    for index in own.values():
        if (text := tokenizer.decode([index]).strip()) and "\ufffd" not in text:
            by_text.setdefault(text, []).append(index)
    found: dict[int, tuple[bool, np.ndarray]] = {}  # whether by name
    for number, token, rest in read_lines(file, width):
        names = [own[token]] if token in own else []
        if not (ids := [*names, *by_text.get(token, [])]):
            continue
        vector = parsed(f"{file}, line {number}", rest, width)
        for index in ids:
            is_name = index in names
            if is_name or index not in found or not found[index][0]:
                found[index] = is_name, vector
    if not found:
        raise ValueError(
            f"{file} names none of the {len(own)} tokens of the vocabulary; its tokens "
            "must be words or pieces of words as they are in the text"
        )
    ids = sorted(found)
    vectors = np.stack([found[index][1] for index in ids])
    if not vectors.any():
        raise ValueError(f"the vectors in {file} are all zero; leave it out")
    return Vectors(np.array(ids, np.int32), vectors)


def parsed(place: str, text: str, width: int) -> np.ndarray:
    try:
        vector = np.array(text.split(), np.float32)
    except ValueError:
        raise ValueError(f"{place} has {text.strip()[:40]!r}, which is no vector") from None
    if len(vector) != width or not np.isfinite(vector).all():
        raise ValueError(f"{place} has {len(vector)} numbers; expected {width}, all finite")
    return vector


def write_vectors(file: pathlib.Path, tokenizer: Tokenizer, table_VD: np.ndarray) -> int:
    """Write the vectors of all tokens, by their names; return how many.

    Names with white space, which the format cannot hold, are left out.
    """
    names = [tokenizer.id_to_token(index) for index in range(len(table_VD))]
    kept = [index for index, name in enumerate(names) if name and len(name.split()) == 1]
    with file.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(f"{len(kept)} {table_VD.shape[1]}\n")
        for index in kept:
            numbers = " ".join(f"{x:.9g}" for x in table_VD[index].tolist())
            stream.write(f"{names[index]} {numbers}\n")
    return len(kept)


def token_id(tokenizer: Tokenizer, word: str) -> int:
    """Return the token of a word, at the start of a text or after a space; ValueError."""
    for text in (word, f" {word}"):
        ids = tokenizer.encode(text).ids
        if len(ids) == 1:
            return ids[0]
    pieces = [tokenizer.decode([index]) for index in tokenizer.encode(word).ids]
    raise ValueError(
        f"--neighbours: {word!r} is no token of the run's vocabulary, which writes it as "
        f"{pieces}; give one of its tokens"
    )


def neighbours(table_VD: np.ndarray, index: int, num: int) -> list[tuple[int, float]]:
    """Return the `num` tokens nearest to one by the cosine, with it, the nearest first."""
    lengths = np.linalg.norm(table_VD, axis=1)
    unit_VD = table_VD / np.where(lengths > 0, lengths, 1.0)[:, None]
    cosines = unit_VD @ unit_VD[index]
    cosines[index] = -np.inf  # not itself
    order = np.argsort(-cosines, kind="stable")[: min(num, len(cosines) - 1)]
    return [(int(other), float(cosines[other])) for other in order]
