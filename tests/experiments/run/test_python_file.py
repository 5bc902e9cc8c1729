"""A Python file of a config or a sweep that is wrong ends in a line: file, line, reason."""

import pytest

from configs.base import Experiment
from experiments.run.python_file import call_function
from experiments.run.startup import read_config_file
from experiments.sweeps.members import load_sweep, member_config
from tests.experiments.runs import ROOT

NOT_A_VALUE = {  # what a file holds -> the line that is named, and the reason
    b"x = 1\ndef get(:\n": (2, "SyntaxError: invalid syntax"),
    b"x = 1\n  y = 2\n": (2, "IndentationError: unexpected indent"),
    b"x = '\n": (1, "SyntaxError: unterminated string"),
    b"x = '\xe9'\n": (1, "SyntaxError: (unicode error)"),
    b"x = 1\n\n1 / 0\n": (3, "ZeroDivisionError: division by zero"),
    b"import no_such_module\n": (1, "ModuleNotFoundError: No module named"),
    b"import sys\nsys.exit('two\\nlines')\n": (2, "SystemExit: two lines"),
    b"raise ValueError('x' * 10_000)\n": (1, "ValueError: xxx"),
    b"def get():\n    return [][1]\n": (2, "IndexError: list index out of range"),
    b"def get():\n    import json\n    json.loads('')\n": (3, "JSONDecodeError"),
    b"def get(size): ...\n": (None, "TypeError: get() missing 1 required positional"),
    b"a\0b": (None, "SyntaxError: source code string cannot contain null bytes"),
    b"get = 3\n": (None, "has no get()"),
    b"": (None, "has no get()"),
}


@pytest.mark.parametrize("name", ["plain.py", "a [b] *ü: c.txt"])
def test_what_is_no_value_is_told_in_a_line(tmp_path, name):
    for index, (content, (line, reason)) in enumerate(NOT_A_VALUE.items()):
        (tmp_path / str(index)).mkdir()
        file = tmp_path / str(index) / name
        file.write_bytes(content)
        with pytest.raises(ValueError) as raised:
            call_function(str(file), "get")
        told = str(raised.value)
        assert told.startswith(f"{file}, line {line}: " if line else str(file)), told
        assert reason in told and "\n" not in told and len(told) < 800, told


def test_what_is_no_file(tmp_path):
    for path, reason in [(tmp_path, "is not a file"), (tmp_path / "x", "no such file")]:
        with pytest.raises(ValueError, match=reason):
            call_function(str(path), "get")


def test_a_value_comes_from_any_path_and_is_made_once(tmp_path):
    file = tmp_path / "a [b] *ü: c.txt"
    file.write_text(
        "import dataclasses\n"
        "@dataclasses.dataclass\n"
        "class Own:\n"
        "    größe: 'int' = 3\n"
        "runs = []\n"
        "runs.append(1)\n"
        "def get():\n"
        "    return Own().größe, len(runs), __file__\n",
        encoding="utf-8",
    )
    assert call_function(str(file), "get") == (3, 1, str(file))
    assert call_function(str(file), "get") == (3, 1, str(file))


CONFIGS = {  # what get_config() returns -> what the message must say
    "None": "get_config() returns a value of type NoneType; expected an Experiment",
    "{}": "get_config() returns a value of type dict; expected an Experiment",
    "Experiment": "get_config() returns a value of type type; expected an Experiment",
    "Experiment(stps=3)": "line 2: TypeError",
    "Experiment(steps='ten')": "steps is 'ten'; expected a value of type int",
    "Experiment(steps=1.5)": "steps is 1.5; expected a value of type int",
    "Experiment(steps=True)": "steps is True; expected a value of type int",
    "Experiment(spike_sigmas='6')": "spike_sigmas is '6'; expected a value of type float",
    "Experiment(prompt=None)": "prompt is None; expected a value of type str",
    "Experiment(data=None)": "data is None; expected a value of type DataConfig",
    "Experiment(model=3)": "model is 3; expected a value of type",
    "Experiment(optim=OptimConfig(b1='0.9'))": "optim.b1 is '0.9'; expected",
}


def write_config(file, value):
    imports = "from configs.base import Experiment; from lm.optim import OptimConfig"
    file.write_text(f"{imports}\nget_config = lambda: {value}\n", encoding="utf-8")
    return str(file)


def test_what_is_no_config(tmp_path):
    for index, (value, words) in enumerate(CONFIGS.items()):
        file = write_config(tmp_path / f"{index}.py", value)
        with pytest.raises(ValueError) as raised:
            read_config_file(file)
        told = str(raised.value)
        assert told.startswith(file) and words in told and "\n" not in told, told


def test_each_config_of_the_project_is_one():
    files = [f for f in (ROOT / "configs").glob("*.py") if "get_config" in f.read_text()]
    assert len(files) > 5
    for file in files:
        config = read_config_file(str(file))
        assert isinstance(config, Experiment)
        config.steps += 1  # each call gives a config of its own
        assert read_config_file(str(file)).steps == config.steps - 1


SWEEPS = {  # what get_sweep() returns -> what the message must say
    "None": "returns a NoneType; expected a list of dicts",
    "{'config': C}": "returns a dict; expected a list of dicts",
    "[]": "get_sweep() returned no member",
    "[3]": "has the member 3; expected a dict",
    "[{3: C}]": "expected a dict",
    "[{'config': C, 'steps': None}]": "a member's steps is None; expected",
    "[{'config': C, 'data': {'path': 'x'}}]": "a member's data is {'path': 'x'}",
    "[{'config': C}] * 2": "twice",
    "[{'config': C, 'prompt': x} for x in ('a\\n', 'b')]": "cannot be a folder's name",
    "[{'config': C, 'prompt': x * 300} for x in 'ab']": "cannot be a folder's name",
    "[{}]": "there is no config file ''",
    "[{'config': 3}]": "there is no config file 3",
    "[{'config': 'no.py'}]": "no config file 'no.py'",
    "[{'config': C, 'optim.rate': 1}]": "rate",
    "[{'config': C, 'optim': 1}]": "config has no field 'optim'",
    "[{'config': C, 'steps': 'ten'}]": "steps is 'ten'; expected a value of type int",
    "[{'config': C, 'steps': 0}]": "steps is 0",
    "[{'config': C, 'devices': 3, 'processes': 2}]": "divisible",
    "[{'config': C, 'devices': '3'}]": "devices is '3'; expected a whole number from 1",
    "[{'config': C, 'devices': 0}]": "devices is 0; expected a whole number from 1",
    "[{'config': C, 'processes': 0}]": "processes is 0; expected a whole number from 1",
    "[{'config': C, 'cores': -1}]": "cores is -1; expected a whole number from 0",
}


def test_what_is_no_sweep(tmp_path):
    head = f"C = {str(ROOT / 'configs/tiny.py')!r}\n"
    for index, (value, words) in enumerate(SWEEPS.items()):
        file = tmp_path / f"{index}.py"
        file.write_text(f"{head}get_sweep = lambda: {value}\n", encoding="utf-8")
        with pytest.raises(ValueError) as raised:
            for name, member in load_sweep(str(file)).items():
                member_config(name, member)
        told = str(raised.value)
        assert words in told and "\n" not in told, told


SHIPPED = [
    file.name
    for file in sorted(ROOT.glob("configs/sweeps/*.py"))
    if "def get_sweep" in file.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", SHIPPED)
def test_each_sweep_of_the_project_has_valid_members(name):
    for member, overrides in load_sweep(str(ROOT / "configs/sweeps" / name)).items():
        member_config(member, overrides)
