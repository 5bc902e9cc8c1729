"""Files that a kill leaves whole."""

import pathlib


def write_whole(file: pathlib.Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one, whole."""
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
