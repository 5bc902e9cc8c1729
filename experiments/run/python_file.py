"""Python files that return a value: get_config() of a config, get_sweep() of a sweep."""

import functools
import pathlib
import sys
import traceback
from types import ModuleType
from typing import Any

LONGEST = 300  # characters to show of a message from the user's file


def call_function(file: str, function: str) -> Any:
    """Return what a function of a Python file returns.

    Raises ValueError that names the file, the line and the reason if it cannot.
    """
    module = load_module(file)
    if not callable(getattr(module, function, None)):
        raise ValueError(f"{file} has no {function}()")
    try:
        return getattr(module, function)()
    except (Exception, SystemExit) as error:
        raise ValueError(explain(error, file)) from None


@functools.cache
def load_module(file: str) -> ModuleType:
    if not pathlib.Path(file).exists():
        raise ValueError(f"{file}: there is no such file")
    if not pathlib.Path(file).is_file():
        raise ValueError(f"{file} is not a file; expected a Python file")
    module = ModuleType(f"file:{file}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # dataclasses look up a class's module here
    try:
        exec(compile(pathlib.Path(file).read_bytes(), file, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise ValueError(explain(error, file)) from None
    return module


def explain(error: BaseException, file: str) -> str:
    """Return one line with the place in the file, the error's type and its message."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
        lines.append(error.lineno)
        reason = error.msg
    else:
        reason = " ".join(str(error).split())[:LONGEST]
    where = f"{file}, line {lines[-1]}" if lines else file
    return f"{where}: {type(error).__name__}: {reason}"
