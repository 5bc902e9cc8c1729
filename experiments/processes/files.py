"""Files that stay whole when a process is killed."""

import contextlib
import json
import math
import pathlib
from typing import Any

from experiments.processes.messages import say


def write_whole(file: pathlib.Path, text: str) -> None:
    """Write a file so that a kill or a full disk leaves the old one or the new one, whole.

    Raises OSError that names the file.
    """
    partial = file.with_suffix(".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):  # no partial file, or a read-only disk
            partial.unlink()
        raise OSError(
            error.errno, f"{file} could not be written: {error.strerror}"
        ) from error


def write_if_possible(file: pathlib.Path, text: str) -> None:
    """Write a file whose content is already printed; warn if that fails."""
    try:
        write_whole(file, text)
    except OSError as error:
        say(f"warning: {error}")


def json_line(value: Any, indent: int | None = None) -> str:
    """Return a line of standard JSON: NaN and infinity become null."""
    return json.dumps(without_nonfinite(value), indent=indent, allow_nan=False) + "\n"


def without_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nonfinite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nonfinite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def whole_records(file: pathlib.Path) -> list[dict[str, Any]]:
    """Read lines of JSON; those that a kill has cut are left out. None without a file."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def read_object(file: pathlib.Path, remedy: str) -> dict[str, Any]:
    """Read a JSON object; ValueError that names the file and the remedy if it is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # text that is not UTF-8 raises one, too
        raise ValueError(f"{file} is damaged ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file} is damaged (it holds no JSON object); {remedy}")
    return value
