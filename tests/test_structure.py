"""Who may import whom, by DESIGN: no arrow runs back, and nothing imports a command."""

import ast
import functools
import pathlib
from collections.abc import Iterator

import pytest

from tests.mutations import FAULTS

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("lm", "parallel", "configs", "experiments")
# Folder -> the modules that it does not import.
FORBIDDEN = {
    "lm": ("parallel", "experiments", "configs"),
    "lm/data": ("lm.models", "flax"),
    "lm/models": ("lm.data",),
    "parallel": ("lm", "flax", "experiments", "configs"),
    "configs": ("experiments",),
    "experiments/processes": ("lm", "parallel", "configs"),
}
# Each room of experiments imports itself and the rooms before it. Commands are last.
ROOMS = (
    "processes",
    "generation",
    "costs",
    "run",
    "asynchronous",
    "sweeps",
    "inspection",
    "planning",
    "studies",
    "commands",
)
MOST_FILES = 18  # of code in a folder


def files(folder: str) -> list[pathlib.Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@functools.cache
def nodes(file: pathlib.Path) -> list[ast.AST]:
    """Return all that a file says, the file itself first."""
    return list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))


def imported(file: pathlib.Path) -> Iterator[str]:
    """Yield the dotted name of every module, or module and name, that a file imports."""
    for node in nodes(file):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def opens_text_without_encoding(call: ast.Call) -> bool:
    """Tell whether a call reads or writes text in the encoding of the user's locale."""
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if "encoding" in given or "True" in (
        given.get("text"),
        given.get("universal_newlines"),
    ):
        return "encoding" not in given
    is_method = isinstance(call.func, ast.Attribute)
    name = call.func.attr if is_method else getattr(call.func, "id", "")
    if name in ("open", "fdopen"):
        own = is_method and name == "open"  # path.open(mode), but open(path, mode)
        modes = [ast.unparse(x) for x in call.args[0 if own else 1 :][:1]]
        return "b" not in "".join([*modes, given.get("mode", "")])
    if name in ("NamedTemporaryFile", "TemporaryFile"):
        return "b" not in given.get("mode", "b")
    return is_method and name in ("read_text", "write_text")


def is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def module_name(file: pathlib.Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("__init__", "__main__"))


def room(name: str) -> str | None:
    """Return the room of a module of experiments, or of what is imported from it."""
    parts = name.split(".")
    if parts[0] != "experiments" or len(parts) < 2:
        return None
    return parts[1] if parts[1] in ROOMS else "commands"


def is_command(file: pathlib.Path) -> bool:
    return '\nif __name__ == "__main__":' in file.read_text()


COMMANDS = [file for file in files("experiments") if is_command(file)]


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_import_directions(folder):
    assert len(files(folder)) > 3
    for file in files(folder):
        for name in imported(file):
            bad = [module for module in FORBIDDEN[folder] if is_in(name, module)]
            assert not bad, f"{file} imports {name}"


def test_no_arrow_runs_back_between_the_rooms_of_experiments():
    arrows = {
        (room(module_name(file)), room(name), str(file))
        for file in files("experiments")
        for name in imported(file)
        if room(module_name(file)) and room(name)
    }
    assert {("run", "costs"), ("sweeps", "run")} <= {arrow[:2] for arrow in arrows}
    back = [arrow for arrow in arrows if ROOMS.index(arrow[1]) > ROOMS.index(arrow[0])]
    assert not back


def test_no_file_imports_a_command():
    names = {module_name(file) for file in COMMANDS}
    assert {"experiments.train", "experiments.studies.benchmark"} <= names
    for folder in (*FOLDERS, "tests"):
        for file in files(folder):
            for name in imported(file):
                found = [c for c in names if name == c or name.rpartition(".")[0] == c]
                # experiments.studies.benchmark is also a folder of libraries.
                library = (ROOT / name.replace(".", "/")).with_suffix(".py").exists()
                assert not found or library and name not in names, f"{file}: {name}"


def test_a_flag_is_defined_by_a_command_or_in_a_function():
    """A flag that a library defines when imported would be every command's."""
    for file in set(files("experiments")) - set(COMMANDS):
        for node in nodes(file)[0].body:
            if not isinstance(node, ast.FunctionDef):
                assert "DEFINE_" not in ast.unparse(node), file


def test_the_top_of_experiments_holds_commands_alone():
    top = set((ROOT / "experiments").glob("*.py")) - {ROOT / "experiments/__init__.py"}
    assert top <= set(COMMANDS)


TEXT = {  # a call -> whether it leaves the encoding to the locale
    "path.read_text()": True,
    "path.read_text(encoding='utf-8')": False,
    "path.write_text(text, errors='replace')": True,
    "read_text(path)": False,
    "path.open()": True,
    "path.open('rb')": False,
    "path.open('a', encoding='utf-8')": False,
    "open(path, 'w')": True,
    "open('b', mode='wb')": False,
    "open('b')": True,
    "subprocess.run(command, text=True)": True,
    "subprocess.run(command, encoding='utf-8')": False,
    "document._replace(text=changed)": False,
    "tempfile.NamedTemporaryFile()": False,
    "tempfile.NamedTemporaryFile(mode='w')": True,
}


def test_text_is_utf_8_in_every_locale():
    for source, expected in TEXT.items():
        call = ast.parse(source, mode="eval").body
        assert opens_text_without_encoding(call) == expected, source
    for folder in FOLDERS:
        for file in files(folder):
            for node in nodes(file):
                if isinstance(node, ast.Call):
                    where = f"{file}:{node.lineno}"
                    assert not opens_text_without_encoding(node), where


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_folder_is_crowded(folder):
    for path in {file.parent for file in files(folder)}:
        code = [file for file in path.glob("*.py") if file.name != "__init__.py"]
        assert len(code) <= MOST_FILES, path


def defined(module: pathlib.Path) -> set[str]:
    """Return the names that a module has once it is imported."""
    inside = {
        id(node)
        for scope in nodes(module)
        if isinstance(scope, ast.FunctionDef | ast.ClassDef | ast.Lambda)
        for node in ast.walk(scope)
        if node is not scope
    }
    names: set[str] = set()
    for node in nodes(module):
        if id(node) in inside:
            continue
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def test_a_module_has_what_is_asked_of_it():
    """Of a study that no test runs, nothing else tells that a name is gone."""
    known: dict[pathlib.Path, set[str]] = {}
    asked = 0
    for file in (file for folder in FOLDERS for file in files(folder)):
        modules = {
            alias.asname or alias.name: module
            for node in nodes(file)
            if isinstance(node, ast.ImportFrom) and node.module and not node.level
            for alias in node.names
            if (
                module := ROOT / node.module.replace(".", "/") / f"{alias.name}.py"
            ).exists()
        }
        for node in nodes(file):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if module := modules.get(node.value.id):
                    names = known.setdefault(module, defined(module))
                    asked += 1
                    assert node.attr in names, f"{file}:{node.lineno}: {ast.unparse(node)}"
    assert asked > 200


def test_faults_can_still_be_planted():
    """Nothing else tells, until somebody plants them, that a text has changed."""
    for fault in FAULTS:
        assert (ROOT / fault.file).read_text().count(fault.old) == 1, fault.title
        assert (ROOT / "tests" / fault.tests.split()[0]).exists(), fault.title
