"""Corpora of files: plain text, and JSON lines."""

import glob
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator

from lm.data.sources.corpus import SHIFTED, Corpus, Document


def text_corpus(
    path: str, validation_path: str, validation_share: float, shifted_path: str = ""
) -> Corpus:
    """Read plain text files, each as one document.

    Without files for validation, the last part of each file is held out.
    """

    def cut(text: str) -> tuple[str, str]:
        end = int(len(text) * (1 - validation_share))
        end = text.rfind("\n", 0, end) + 1 or end
        return text[:end], text[end:]

    def read(file: pathlib.Path) -> Iterator[Document]:
        yield Document(read_text(file), *names(file))

    return files_corpus(
        "text", path, validation_path, validation_share, shifted_path, read, cut
    )


def jsonl_corpus(
    path: str,
    validation_path: str,
    validation_share: float,
    text_key: str,
    shifted_path: str = "",
) -> Corpus:
    """Read JSON-lines files: each line holds a document under `text_key`.

    Without files for validation, a hash of the document decides if it is held out.
    """

    def cut(text: str) -> tuple[str, str]:
        digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
        held_out = int.from_bytes(digest, "big") < validation_share * 2**32
        return ("", text) if held_out else (text, "")

    def read(file: pathlib.Path) -> Iterator[Document]:
        return read_jsonl(file, text_key)

    corpus = files_corpus(
        "jsonl", path, validation_path, validation_share, shifted_path, read, cut
    )
    return corpus._replace(identity=corpus.identity | {"key": text_key})


def files_corpus(
    source: str,
    path: str,
    validation_path: str,
    validation_share: float,
    shifted_path: str,
    read: Callable[[pathlib.Path], Iterator[Document]],
    cut: Callable[[str], tuple[str, str]],
) -> Corpus:
    """Read files by `read`; hold out other files, or a part of each text, by `cut`."""
    files = list_files("data.path", path)
    held_out = (
        list_files("data.validation_path", validation_path) if validation_path else []
    )
    shifted = list_files("data.shifted_path", shifted_path) if shifted_path else []

    def documents(split: str) -> Iterator[Document]:
        if split == "shifted":
            for file in shifted:
                yield from read(file)
            return
        validation = split == "validation"
        for file in held_out if validation and held_out else files:
            for document in read(file):
                text = document.text
                part = text if held_out else cut(text)[validation]
                if part:
                    yield Document(part, document.name, document.key)

    identity = {
        "source": source,
        "files": list(map(file_digest, files)),
        "validation_files": list(map(file_digest, held_out)),
        "validation_share": None if held_out else validation_share,
        "shifted_files": list(map(file_digest, shifted)),
    }
    return Corpus(identity, documents, SHIFTED if shifted else SHIFTED[:2])


def file_digest(file: pathlib.Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()[:16]


def list_files(field: str, pattern: str) -> list[pathlib.Path]:
    """List the files of a path, a folder or a glob; ValueError if none, or an empty one."""
    if not pattern:
        raise ValueError(f"{field} is empty; give a file, a folder or a glob")
    expanded = pathlib.Path(pattern).expanduser()
    if expanded.is_dir():
        files = sorted(p for p in expanded.rglob("*") if p.is_file())
    else:
        files = [pathlib.Path(p) for p in sorted(glob.glob(str(expanded), recursive=True))]
    if not files:
        raise ValueError(f"{field} {pattern!r} matches no file")
    for file in files:
        if file.stat().st_size == 0:
            raise ValueError(f"{field}: {file} is empty; remove it or fill it")
    return files


def names(file: pathlib.Path) -> tuple[str, str]:
    """Return the name and the key of the documents of a file."""
    return str(file), str(file.parent)


def read_text(file: pathlib.Path) -> str:
    return decode(file, file.read_bytes(), 0)


def decode(file: pathlib.Path, raw: bytes, offset: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8: byte {offset + error.start} is "
            f"0x{raw[error.start]:02x}; convert it, for example with iconv -t UTF-8"
        ) from None


def read_jsonl(file: pathlib.Path, text_key: str) -> Iterator[Document]:
    """Yield the document of each line that is not blank; ValueError names file and line."""
    offset = 0
    name, key = names(file)
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            line = decode(file, raw, offset)
            offset += len(raw)
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number} is not JSON: {error}") from None
            if not isinstance(record, dict) or not isinstance(record.get(text_key), str):
                raise ValueError(
                    f"{file}, line {number} has no text under {text_key!r}; "
                    "set data.text_key"
                )
            yield Document(record[text_key], f"{name}#{number}", key)
