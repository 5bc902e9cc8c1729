"""What every command does first: flags, config, processes, devices, compilation cache.

Bad input ends here, before anything is allocated, with exit code 2 and a line that says
what was given, what was expected and what to change.
"""

import dataclasses
import difflib
import pathlib
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from configs.base import FAMILIES, Experiment
from experiments.processes.messages import user_errors

flags.disclaim_key_flags()  # they are shown as those of the command that asks for them


def define_config() -> flags.FlagHolder:
    return config_flags.DEFINE_config_file(
        "config", None, "A config file, such as configs/tiny.py.", lock_config=False
    )


def define_workdir() -> flags.FlagHolder:
    return flags.DEFINE_string("workdir", None, "The folder of the run.")


def run(main: Callable[..., None], argument: str | None = None) -> None:
    """Parse the flags and call `main`, turning errors of use into exit code 2.

    `argument` describes what `main` takes where it takes one besides the flags.
    """

    def guarded(argv: list[str]) -> None:
        quiet_readers()
        if not flags.FLAGS["verbosity"].present:
            # Orbax logs a failed save five times with tracebacks; we tell it in a line.
            logging.set_verbosity(logging.FATAL)
        with user_errors():
            expected = 2 if argument else 1
            if len(argv) > expected:
                given = argv[expected]
                raise ValueError(f"{given!r} is not a flag; did you mean --{given}?")
            if len(argv) < expected:
                raise ValueError(f"give {argument}")
        main(*argv[1:])

    app.run(guarded, flags_parser=parse_flags)


def quiet_readers() -> None:
    """Silence what the readers of a damaged checkpoint print; we tell it in a line.

    TensorStore's threads report to an event loop that Orbax has closed when the first read
    failed, and Orbax leaves its other reads unawaited.
    """
    usual = sys.unraisablehook

    def hook(unraisable) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            usual(unraisable)

    sys.unraisablehook = hook
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")


def parse_flags(argv: list[str]) -> list[str]:
    with user_errors():
        config = named_config(argv)
        check_override_names(argv, config)
        try:
            return flags.FLAGS(argv)
        except flags.IllegalFlagValueError as error:
            raise ValueError(explain_value(str(error), config)) from None
        except flags.Error as error:
            raise ValueError(str(error)) from None


def named_config(argv: list[str]) -> Experiment:
    """Return the config that --config names, without its overrides; else the default."""
    for index, argument in enumerate(argv[1:], 1):
        match = re.fullmatch(r"--?config(=(.*))?", argument)
        if match and "config" in flags.FLAGS:
            path = match[2] if match[1] else "".join(argv[index + 1 : index + 2])
            config = flags.FLAGS["config"].parser.parse(path)
            # A file that is missing is told by `load_config`.
            return config if isinstance(config, Experiment) else Experiment()
    return Experiment()


def config_fields(config: Any, prefix: str = "") -> dict[str, type]:
    """Map the dotted name of every field of a config to its type."""
    names = {}
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            names |= config_fields(value, name + ".")
        else:
            names[name] = field.type
    return names


def check_override_names(argv: list[str], config: Experiment) -> None:
    known = config_fields(config)
    for argument in argv[1:]:
        match = re.match(r"--?(no)?config\.([^=]*)", argument)
        if match and match[2] not in known:
            near = difflib.get_close_matches(match[2], known, 1, 0.0)
            raise ValueError(
                f"config has no field {match[2]!r}; the nearest is {near[0]!r}"
                + of_another_family(match[2], config)
            )


def of_another_family(name: str, config: Experiment) -> str:
    """Say so if the field is one of the models that this config does not have."""
    names = [
        family
        for family, model in FAMILIES.items()
        if name in config_fields(model(), "model.")
    ]
    if not names:
        return ""
    here = type(config.model).__name__
    return f" ({name} is of the {', '.join(names)} family; config.model is a {here})"


def explain_value(message: str, config: Experiment) -> str:
    match = re.match(r"flag --config\.([\w.]+)=(.*?): ", message)
    if not match:
        return message
    expected = config_fields(config)[match[1]].__name__
    return f"config.{match[1]} is {match[2]!r}; expected a value of type {expected}"


def load_config(flag: flags.FlagHolder) -> Experiment:
    if flag.value is None:
        raise ValueError("no --config given; for example --config=configs/tiny.py")
    config = flag.value
    if not isinstance(config, Experiment):
        raise ValueError(
            f"--config={flags.FLAGS['config'].config_filename}: the file is missing, or "
            "its get_config() does not return an Experiment"
        )
    return config


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
