"""Start a command: flags, config, processes, devices, compilation cache.

Bad input ends the command here, before anything is allocated, with exit code 2 and a line
that says what was given, what was expected and what to change.
"""

import copy
import itertools
import pathlib
import re
import sys
import typing
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from configs import fields
from configs.base import FAMILIES, Experiment
from experiments.processes.messages import user_errors
from experiments.run.python_file import call_function
from experiments.run.workdir import read_config

flags.disclaim_key_flags()  # --help then lists them as the command's own flags


PARTS_BY_FLAG = {
    name: f", and flags can set its parts, such as --config.{name}[0].{part}"
    for name, part in {"data.sources": "path", "parallel.phases": "after"}.items()
}


class ConfigParser(flags.ArgumentParser):
    """Reads a config file; ml_collections' own parser shows a traceback."""

    def parse(self, file: str) -> Experiment:
        return read_config_file(file)


def define_config() -> flags.FlagHolder:
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file, such as configs/tiny.py; set its fields with --config.NAME=VALUE.",
        lock_config=False,
    )
    flags.FLAGS["config"].parser = ConfigParser()
    return holder


def read_config_file(file: str) -> Experiment:
    """Return a copy of the config of a file; ValueError, in a line, if it has none."""
    if not file:
        raise ValueError("no --config given; for example --config=configs/tiny.py")
    if pathlib.Path(file).name == "config.json":
        return read_config(pathlib.Path(file).parent)
    config = call_function(file, "get_config")
    if not isinstance(config, Experiment):
        raise ValueError(
            f"{file}: get_config() returns a value of type {type(config).__name__}; "
            "expected an Experiment"
        )
    try:
        fields.check_types(config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return copy.deepcopy(config)


def define_workdir() -> flags.FlagHolder:
    return flags.DEFINE_string(
        "workdir", None, "Folder of the run or sweep, such as runs/tiny."
    )


def run(
    main: Callable[..., None],
    argument: str | None = None,
    several: bool = False,
    config: str = "",
) -> None:
    """Parse the flags and call `main`, turning errors of use into exit code 2.

    `argument` describes the argument of `main` besides the flags, if it has one; with
    `several`, it may be given more than once. `config` is the config file where no --config
    is given, and the workdir has none either.
    """

    def guarded(argv: list[str]) -> None:
        quiet_readers()
        print_everything()
        if not flags.FLAGS["verbosity"].present:
            # Orbax logs a failed save five times with tracebacks; our warning is one line.
            logging.set_verbosity(logging.FATAL)
        with user_errors():
            expected = 2 if argument else 1
            if len(argv) > expected and not several:
                given = argv[expected]
                raise ValueError(f"{given!r} is not a flag; did you mean --{given}?")
            if len(argv) < expected:
                raise ValueError(f"give {argument}")
        main(*argv[1:])

    app.run(guarded, flags_parser=partial(parse_flags, config))


def print_everything() -> None:
    """Print characters that the terminal cannot encode as escapes, not as errors."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def quiet_readers() -> None:
    """Silence the readers of a damaged checkpoint; our own error is one line.

    TensorStore's threads report to an event loop that Orbax has closed when the first read
    failed, and Orbax leaves its other reads unawaited.
    """
    usual = sys.unraisablehook

    def hook(unraisable) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            usual(unraisable)

    sys.unraisablehook = hook
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")


def parse_flags(usual: str, argv: list[str]) -> list[str]:
    with user_errors():
        argv = with_config(argv, usual)
        config = named_config(argv)
        check_override_names(argv, config)
        argv = numbers_for_words(argv, config)
        try:
            return flags.FLAGS(argv)
        except flags.IllegalFlagValueError as error:
            raise ValueError(explain_value(str(error), config)) from None
        except flags.Error as error:
            raise ValueError(str(error)) from None


def with_config(argv: list[str], usual: str) -> list[str]:
    """Add --config where it is not given: that of the run in the workdir, or the usual."""
    if "config" not in flags.FLAGS or flag_value(argv, "config") is not None:
        return argv
    folder = flag_value(argv, "workdir") if "workdir" in flags.FLAGS else None
    own = folder and pathlib.Path(folder, "config.json")
    file = str(own) if own and own.exists() else usual
    return [argv[0], f"--config={file}", *argv[1:]] if file else argv


def flag_value(argv: list[str], name: str) -> str | None:
    """Return the value of a flag before flags are parsed; None if it is not given."""
    for index, argument in enumerate(argv[1:], 1):
        if match := re.fullmatch(rf"--?{name}(=(.*))?", argument):
            return match[2] if match[1] else "".join(argv[index + 1 : index + 2])
    return None


def numbers_for_words(argv: list[str], config: Experiment) -> list[str]:
    """Replace words that stand for numbers, as in --config.parallel.accumulation=auto."""
    words = {
        (f"{dashes}config.{field.name}", word): number
        for field in fields.walk(config)
        for word, number in field.metadata.get("words", {}).items()
        for dashes in ("-", "--")
    }
    found = []
    for before, argument in itertools.pairwise(["", *argv]):
        name, equals, word = argument.partition("=")
        if (before, argument) in words:
            argument = str(words[before, argument])
        elif equals and (name, word) in words:
            argument = f"{name}={words[name, word]}"
        found.append(argument)
    return found


def named_config(argv: list[str]) -> Experiment:
    """Return the config that --config names, without its overrides; else the default."""
    path = flag_value(argv, "config") if "config" in flags.FLAGS else None
    return Experiment() if path is None else read_config_file(path)


def field_types(config: Any, prefix: str = "") -> dict[str, type]:
    """Map the name of every field that holds no configs to its type."""
    walked = fields.walk(config, prefix)
    return {field.name: field.spec.type for field in walked if field.is_leaf}


def check_override_names(argv: list[str], config: Experiment) -> None:
    known = field_types(config)
    in_files = {f.name for f in fields.walk(config) if typing.get_origin(f.spec.type)}
    for argument in argv[1:]:
        match = re.match(r"--?(no)?config\.([^=]*)", argument)
        if match and match[2] in in_files:
            raise ValueError(
                f"no flag can give config.{match[2]}; write it in the config file"
                + PARTS_BY_FLAG.get(match[2], "")
            )
        if match and match[2] not in known:
            raise ValueError(
                f"config has no field {match[2]!r}"
                + (of_another_family(match[2], config) or fields.nearest(match[2], known))
            )


def of_another_family(name: str, config: Experiment) -> str:
    """Say that a field belongs to another family of models; "" if it does not."""
    names = [
        family
        for family, model in FAMILIES.items()
        if name in field_types(model(), "model.")
    ]
    if not names:
        return ""
    here = type(config.model).__name__
    return f" ({name} is of the {', '.join(names)} family; config.model is a {here})"


def explain_value(message: str, config: Experiment) -> str:
    match = re.match(r"flag --config\.([\w.\[\]]+)=(.*?): ", message)
    if not match:
        return message
    expected = field_types(config)[match[1]].__name__
    return f"config.{match[1]} is {match[2]!r}; expected a value of type {expected}"


def load_config(flag: flags.FlagHolder) -> Experiment:
    if flag.value is None:
        raise ValueError("no --config given; for example --config=configs/tiny.py")
    return flag.value


def workdir(flag: flags.FlagHolder) -> pathlib.Path:
    if not flag.value:
        raise ValueError("no --workdir given; for example --workdir=runs/tiny")
    if "://" in flag.value:
        raise ValueError(
            f"--workdir={flag.value} is an address; expected a folder of this machine. "
            "Mount the storage (as with gcsfuse), or copy the run there when it is complete"
        )
    try:
        return pathlib.Path(flag.value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"--workdir={flag.value}: {error}; give a whole path") from None
