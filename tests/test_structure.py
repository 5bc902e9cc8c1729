"""The folders import each other in one direction only."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FORBIDDEN = {
    "lm": {"parallel", "experiments", "configs"},
    "parallel": {"lm", "flax", "experiments", "configs"},
    "configs": {"experiments"},
}


def imported(file: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_import_directions(folder):
    files = list((ROOT / folder).rglob("*.py"))
    assert len(files) > 3 or folder == "configs"
    for file in files:
        assert not imported(file) & FORBIDDEN[folder], file
