"""Files as people have them: compressed, of many documents, with records that are damaged.

Files are read in blocks, and a document of more than PART characters is dealt out in parts.
So memory does not grow with a file or with a document.
"""

import codecs
import gzip
import importlib
import itertools
import pathlib
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import BinaryIO, NamedTuple

BLOCK = 1 << 20  # bytes that are read at once
PACKED = 1 << 6, 1 << 16  # packed bytes that are unpacked at once, least and most
PART = 1 << 22  # characters of the longest part of a document
SEPARATOR = 1 << 12  # characters of the longest separator
NULS = 0.1  # a file whose first block has a larger share of them is UTF-16, or no text


class Piece(NamedTuple):
    text: str
    name: str  # of the document, or of the part of it
    first: bool = True  # False: it goes on where the piece before it ends


class BadRecord(ValueError):
    """A file, or a record in it, that cannot be read; the message says where and why."""

    def __init__(self, file: pathlib.Path | str, reason: str, line: int = 0):
        super().__init__(f"{file}{f', line {line}' if line else ''} {reason}")


class BadRecords:
    """What becomes of records that cannot be read: an error, or a count."""

    def __init__(self, policy: str):
        self.policy, self.count, self.first = policy, 0, ""

    def __call__(self, error: BadRecord) -> None:
        if self.policy == "stop":
            raise ValueError(f"{error}; data.on_bad_record=skip leaves such records out")
        self.count += 1
        self.first = self.first or str(error)

    def report(self, told: set[str]) -> None:
        """Print the count, unless it is among those that were told before."""
        if self.count and self.first not in told:
            line = f"left out {self.count} records that cannot be read; the first: "
            print(line + self.first, file=sys.stderr, flush=True)
            told.add(self.first)


def optional(module: str, need: str) -> ModuleType:
    """Import a package that only some data needs; ValueError says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(
            f"{need} needs {module.partition('.')[0]}; pip install -r requirements-data.txt"
        ) from None


def blocks(file: pathlib.Path) -> Iterator[bytes]:
    """Yield the bytes of a file, those inside it if its name ends with .gz or .zst."""
    try:
        if file.suffix == ".zst":
            with file.open("rb") as stream:
                yield from zst_blocks(file, stream)
            return
        with gzip.GzipFile(file) if file.suffix == ".gz" else file.open("rb") as stream:
            while block := stream.read(BLOCK):
                yield block
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadRecord(file, f"cannot be read ({reason})") from None


def zst_blocks(file: pathlib.Path, stream: BinaryIO) -> Iterator[bytes]:
    # zstandard's own reader of streams ends a file that was cut off without an error.
    zstandard = optional("zstandard", str(file))
    unpack, data, step = None, b"", min(PACKED)
    try:
        while data := data or stream.read(max(PACKED)):
            unpack = (
                unpack
                or zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            )
            # A part of a packed block gives nothing yet; an empty block would be the end.
            if block := unpack.decompress(data[:step]):
                yield block
            data = unpack.unused_data + data[step:]
            # A few bytes may be a megabyte of lines that repeat each other.
            step = step * BLOCK // len(block) if len(block) > BLOCK else 2 * step
            step = min(max(step, min(PACKED)), max(PACKED))
            unpack = None if unpack.eof else unpack
    except zstandard.ZstdError as error:
        raise BadRecord(file, f"cannot be read ({error})") from None
    if unpack is not None:
        raise BadRecord(file, "cannot be read (it ends too early)")


def decode(file: pathlib.Path | str, raw: bytes, offset: int = 0, line: int = 0) -> str:
    return decode_part(file, raw, offset, True, line)[0]


def decode_part(
    file: pathlib.Path | str, raw: bytes, offset: int, final: bool, line: int = 0
) -> tuple[str, int]:
    """Return the text and how many bytes it took; BadRecord if it is not UTF-8."""
    try:
        return codecs.utf_8_decode(raw, "strict", final)
    except UnicodeDecodeError as error:
        raise BadRecord(
            file,
            f"is not UTF-8: byte {offset + error.start} is 0x{raw[error.start]:02x}; "
            "convert it, for example with iconv -t UTF-8",
            line,
        ) from None


def characters(file: pathlib.Path) -> Iterator[str]:
    """Yield the text of a file in blocks, without a byte-order mark."""
    rest, offset = b"", 0
    for block in itertools.chain(blocks(file), [b""]):
        if not offset and block.count(0) > NULS * len(block):
            raise BadRecord(
                file, "is not UTF-8 text: it has many NUL bytes, as UTF-16 and binary have"
            )
        raw = rest + block
        text, used = decode_part(file, raw, offset, final=not block)
        yield text if offset else text.removeprefix("\ufeff")
        rest, offset = raw[used:], offset + used


def read_text(file: pathlib.Path) -> str:
    return "".join(characters(file))


def compiled(separator: str, is_regex: bool) -> re.Pattern | None:
    """Return the pattern of a separator; None if it is empty. ValueError for a bad one.

    Its line ends of Windows become \\n, as those of the text do (`unified`).
    """
    if not separator:
        return None
    plain = separator.replace("\r\n", "\n")
    regex = plain.replace(r"\r\n", r"\n") if is_regex else re.escape(plain)
    try:
        pattern = re.compile(regex, re.MULTILINE)
    except re.error as error:
        raise ValueError(
            f"data.separator {separator!r} is not a regular expression: {error}; "
            "data.separator_kind=text takes it as it is written"
        ) from None
    if pattern.search(""):
        raise ValueError(
            f"data.separator {separator!r} matches an empty text; it must match a letter"
        )
    return pattern


def cut(texts: Iterable[str], separator: re.Pattern | None) -> Iterator[tuple[str, bool]]:
    """Cut a stream of text into documents, and those into parts of at most PART characters.

    Yields (text, whether a document begins here).
    """
    buffer, begin, searched, first = "", 0, 0, True
    for block in itertools.chain(texts, [None]):
        buffer += block or ""
        # A separator near the end may become longer with the next block.
        settled = len(buffer) - (0 if block is None else SEPARATOR)
        start = begin
        for match in separator.finditer(buffer, searched) if separator else ():
            if match.end() > settled:
                break
            yield from parts(buffer[start : match.start()], first)
            first, start = True, match.end()
        # Separators that are not settled yet begin later than this.
        sure = len(buffer) if block is None else max(settled - SEPARATOR, start)
        while sure - start > PART:
            end = line_end(buffer, start)
            yield buffer[start:end], first
            first, start = False, end
        # What stands before stays a while: ^ and (?<=...) look at it.
        left = max(start - SEPARATOR, 0)
        buffer, begin, searched = buffer[left:], start - left, max(sure, start) - left
    yield buffer[begin:], first


def parts(text: str, first: bool = True) -> Iterator[tuple[str, bool]]:
    start = 0
    while len(text) - start > PART:
        end = line_end(text, start)
        yield text[start:end], first
        first, start = False, end
    yield text[start:], first


def line_end(text: str, start: int) -> int:
    """Return where a part ends that begins at `start`: at a line's end if there is one."""
    return text.rfind("\n", start, start + PART) + 1 or start + PART


def pieces(cuts: Iterable[tuple[str, bool]], name: Callable[[int], str]) -> Iterator[Piece]:
    """Name the parts of documents by their document's number; drop those without text."""
    number, part, begun = 0, 0, False
    for text, first in cuts:
        number, part = number + first, 1 if first else part + 1
        begun = begun and not first
        if text and not text.isspace():
            more = "" if first else f", part {part}"
            yield Piece(text, name(number) + more, not begun)
            begun = True


def unified(texts: Iterable[str]) -> Iterator[str]:
    """Write each line end of a stream as \\n, so that separators of lines are found."""
    held = ""  # a \\r whose \\n may be in the next block
    for text in texts:
        text = held + text
        held = "\r" * text.endswith("\r")
        text = text.removesuffix(held)
        yield text.replace("\r\n", "\n").replace("\r", "\n")
    yield "\n" * len(held)


def text_pieces(file: pathlib.Path, separator: re.Pattern | None) -> Iterator[Piece]:
    """Yield the documents of a text file; without a separator it is one document."""
    texts = characters(file)
    return pieces(
        cut(unified(texts) if separator else texts, separator),
        lambda number: f"{file}#{number}" if separator else str(file),
    )


def read_lines(file: pathlib.Path, bad: BadRecords) -> Iterator[tuple[int, str | None]]:
    """Yield (number, line) without line ends; None for a line that `bad` lets pass."""
    offset = 0
    for number, raw in enumerate(raw_lines(file), 1):
        try:
            line = decode(file, raw, offset, number)
            line = line if offset else line.removeprefix("\ufeff")
            yield number, line.removesuffix("\r")
        except BadRecord as error:
            bad(error)
            yield number, None
        offset += len(raw) + 1


def raw_lines(file: pathlib.Path) -> Iterator[bytes]:
    begun: list[bytes] = []  # the blocks of a line whose end is not read yet
    for block in blocks(file):
        *ended, rest = block.split(b"\n")
        if ended:
            ended[0] = b"".join([*begun, ended[0]])
            begun = []
            yield from ended
        begun.append(rest)
    if last := b"".join(begun):
        yield last
