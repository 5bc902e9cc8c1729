"""Records that hold a document under a key: lines of JSON, and rows of Parquet files."""

import json
import pathlib
import re
from collections.abc import Iterator

from lm.data.sources.reading import (
    BadRecord,
    BadRecords,
    Piece,
    decode,
    optional,
    parts,
    pieces,
    read_lines,
)

# The value of a number is not needed, and Python refuses to convert those of many digits.
JSON = json.JSONDecoder(parse_int=str, parse_float=str)
SURROGATE = re.compile("[\ud800-\udfff]")
ROWS = 256  # rows of a Parquet file that are read at once


def jsonl_pieces(file: pathlib.Path, text_key: str, bad: BadRecords) -> Iterator[Piece]:
    """Yield the document of each line that is not blank."""
    for number, line in read_lines(file, bad):
        if line is None or not line.strip():
            continue
        try:
            text = text_of(file, line, text_key, number)
        except BadRecord as error:
            bad(error)
        else:
            yield from numbered(file, text, number)


def text_of(file: pathlib.Path, line: str, text_key: str, number: int) -> str:
    try:
        record = JSON.decode(line)
    except json.JSONDecodeError as error:
        raise BadRecord(file, f"is not JSON: {error}", number) from None
    except RecursionError:
        raise BadRecord(file, "is JSON that is nested too deeply", number) from None
    if not isinstance(record, dict) or not isinstance(record.get(text_key), str):
        reason = f"has no text under {text_key!r}; set data.text_key"
        raise BadRecord(file, reason, number)
    if found := SURROGATE.search(text := record[text_key]):
        half = f"\\u{ord(found.group()):04x}"
        raise BadRecord(file, f"has {half}, half of a character", number)
    return text


def numbered(file: pathlib.Path, text: str, number: int) -> Iterator[Piece]:
    return pieces(parts(text), lambda _: f"{file}#{number}")


def parquet_pieces(file: pathlib.Path, text_key: str, bad: BadRecords) -> Iterator[Piece]:
    """Yield the document of each row; text_key names its column."""
    arrow = optional("pyarrow", "data.source=parquet")
    parquet = optional("pyarrow.parquet", "data.source=parquet")
    try:
        # By default pyarrow reads a whole group of rows ahead.
        table = parquet.ParquetFile(file, pre_buffer=False)
        if text_key not in table.schema_arrow.names:
            reason = f"has no column {text_key!r}; it has "
            reason += ", ".join(table.schema_arrow.names) + "; set data.text_key"
            raise BadRecord(file, reason)
        for first, batch in enumerate(table.iter_batches(ROWS, columns=[text_key])):
            for row, value in enumerate(batch.column(0), 1 + first * ROWS):
                try:
                    yield from numbered(file, text_of_cell(file, value, row), row)
                except BadRecord as error:
                    bad(error)
    except (arrow.ArrowException, OSError) as error:
        raise BadRecord(file, f"cannot be read ({str(error).splitlines()[0]})") from None


def text_of_cell(file: pathlib.Path, value, row: int) -> str:
    if not value.is_valid or not hasattr(value, "as_buffer"):
        raise BadRecord(file, f"has no text in row {row}")
    return decode(file, value.as_buffer().to_pybytes(), line=row)
