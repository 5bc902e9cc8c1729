"""Files that are either whole or not there."""

import os
import pathlib


def write_whole(file: pathlib.Path, text: str) -> None:
    """Write a text file, under another name until it is complete."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
