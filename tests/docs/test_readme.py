"""The README and the pages: short, links and commands right, tables as measured."""

import ast
import dataclasses
import functools
import importlib
import pathlib
import re

import pytest

from experiments.inspection.truth import planted_table
from experiments.studies.asynchronous.tables import (
    islands_table,
    seconds_table,
    speed_table,
)
from experiments.studies.balance.tables import balance_tables
from experiments.studies.compression.tables import tables as compression_tables
from experiments.studies.deaths.tables import deaths_table
from experiments.studies.flips.shares import flips_table
from experiments.studies.hub.compare import table as hub_table
from experiments.studies.links.tables import link_tables, partition_table
from experiments.studies.plan_accuracy.cells import replanned
from experiments.studies.plan_accuracy.tables import tables as plan_tables
from experiments.studies.plan_accuracy.timed import with_seconds
from experiments.studies.planted.plant import CLEAN
from experiments.studies.preparation.tables import preparation_tables
from experiments.studies.soak.table import goodput_table, soak_table
from experiments.studies.staleness.tables import loss_table, won_table
from experiments.studies.transfer.tables import transfer_tables
from experiments.sweeps.pages import tables
from experiments.sweeps.pipeline_tables import pipeline_tables
from experiments.sweeps.results import read
from experiments.sweeps.strategy_tables import strategy_tables
from experiments.sweeps.tpu_tables import tables as tpu_tables
from experiments.sweeps.wire_table import wire_table
from tests.experiments.runs import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
CONFIGS = sorted(ROOT.glob("configs/*.py"))
# Commands stand in the pages and at the heads of configs and of commands.
TEXTS = [*PAGES, *sorted(ROOT.glob("configs/**/*.py")), *ROOT.glob("experiments/**/*.py")]
FOLDERS = "lm|parallel|configs|experiments|tests|docs|results"


def name_of(file: pathlib.Path) -> str:
    return str(file.relative_to(ROOT))


def test_the_readme_is_read_in_three_minutes():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 1400
    assert len(text.splitlines()) <= 120


def test_what_a_page_links_to_is_there():
    assert len(PAGES) > 20
    for page in PAGES:
        check_links(page)


def check_links(page: pathlib.Path) -> None:
    text = page.read_text()
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)]*)?\)", text):
        if not link.startswith("http"):
            target = (page.parent / link) if link else page
            assert target.exists(), f"{name_of(page)}: {link}"
            assert not anchor or anchor[1:] in headings(target), (
                f"{name_of(page)}: {anchor}"
            )
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", text):
        assert (ROOT / path).exists(), f"{name_of(page)}: {path}"


def headings(page: pathlib.Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in found}


def test_commands_are_right():
    assert sum(check_text(file) for file in TEXTS) > 60


def check_text(file: pathlib.Path) -> int:
    """Check the commands and the fields in a text; return how many commands it has."""
    text = file.read_text()
    if file.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    found = commands(text)
    for module, flags in found:
        check_command(module, flags, name_of(file))
    for name in re.findall(r"--config\.([a-z][\w.]*)", text):
        assert name in fields(), f"{name_of(file)}: --config.{name}"
    for name in re.findall(r"`((?:data|model|optim|parallel|precision)\.[\w.]+)", text):
        assert name in fields(), f"{name_of(file)}: {name}"
    return len(found)


def commands(text: str) -> list[tuple[str, str]]:
    """Return (module, flags) of each command; a shell variable stands for what it holds."""
    text = re.sub(r"\\\n\s*", " ", text)
    for name, value in re.findall(r'^(\w+)="(.*)"$', text, re.MULTILINE):
        text = text.replace(f"${name}", value)
    # A flag in brackets is optional, and may stand on the next line.
    text = re.sub(r"\n\s*\[--", " [--", text)
    return re.findall(r"python -m (experiments(?:\.[a-z]\w*)+)([^\n`#]*)", text)


def check_command(module: str, flags: str, where: str) -> None:
    given, _, passed_on = flags.partition(" -- ")
    assert module_file(module), f"{where}: {module}"
    names = set(re.findall(r"--(?:no)?([a-z]\w*)", given))
    names -= {"config"} if "config" in defined_flags(module) else set()
    unknown = names - defined_flags(module)
    assert not unknown, f"{where}: {module} has no {unknown}"
    for kind, file in re.findall(r"--(config|sweep)=(\S+\.py)", flags):
        assert (ROOT / file).is_file(), f"{where}: --{kind}={file}"
    if config := re.search(r"--config=(\S+\.py)", flags):
        for name in re.findall(r"--config\.([\w.]+)", flags):
            assert name in fields_of(config[1]), f"{where}: {config[1]} has no {name}"
    if passed_on:
        to = re.search(r"--module=(\S+)", given)
        check_command(to[1] if to else "experiments.train", f" {passed_on}", where)


def module_file(module: str) -> pathlib.Path | None:
    path = ROOT / module.replace(".", "/")
    found = [path.with_suffix(".py"), path / "__main__.py", path / "__init__.py"]
    return next((file for file in found if file.is_file()), None)


@functools.cache
def defined_flags(module: str) -> frozenset[str]:
    """Read a command's own flags and those of define_...() calls from the source."""
    tree = ast.parse(module_file(module).read_text())
    sources = {}  # a name that is imported -> the module that it is or is in
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                sources[alias.name] = whole if module_file(whole) else node.module
    found = set(names_in(tree))
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        path = ast.unparse(call.func).split(".")
        if path[-1].startswith("define_") and path[0] in sources:
            library = ast.parse(module_file(sources[path[0]]).read_text())
            for node in library.body:
                if isinstance(node, ast.FunctionDef) and node.name == path[-1]:
                    found |= set(names_in(node))
    return frozenset(found)


def names_in(tree: ast.AST) -> list[str]:
    return re.findall(r"DEFINE_\w+\(\s*['\"](\w+)['\"]", ast.unparse(tree))


@functools.cache
def fields_of(file: str) -> frozenset[str]:
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    return frozenset(dotted(module.get_config()))


@functools.cache
def fields() -> frozenset[str]:
    """Return the fields of all configs, and the names of their groups."""
    files = [file for file in CONFIGS if "def get_config" in file.read_text()]
    assert len(files) > 5
    return frozenset().union(*(fields_of(str(file.relative_to(ROOT))) for file in files))


def dotted(config, prefix: str = "") -> list[str]:
    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        names.append(prefix + field.name)
        if dataclasses.is_dataclass(value):
            names += dotted(value, f"{prefix}{field.name}.")
    return names


def test_a_wrong_command_is_found():
    """What the tests above could miss."""
    good = (
        "python -m experiments.launch --processes=2 -- --config=configs/tiny.py --dry_run"
    )
    (command,) = commands(f"`{good}`")
    check_command(*command, "here")
    for old, new in [
        ("experiments.launch", "experiments.lunch"),
        ("--processes", "--dry_run"),
        ("--dry_run", "--processes=2"),
        ("--dry_run", "--config.model.cell=gru"),
        ("tiny", "tinny"),
    ]:
        (command,) = commands(good.replace(old, new))
        with pytest.raises(AssertionError, match="here"):
            check_command(*command, "here")


def test_the_tables_are_those_of_the_results():
    results = {file.stem: read(file) for file in (ROOT / "results").glob("*.jsonl")}
    expected = {
        **strategy_tables(results["strategies"]),
        **pipeline_tables(results["pipeline"]),
        "wire": wire_table(results["wire"]),
    }
    assert tables(ROOT / "docs/strategies.md") == expected
    assert tables(ROOT / "docs/links.md") == {
        **link_tables(results.get("links", []), results["two_devices"]),
        "partition": partition_table(results.get("partition", [])),
    }
    page = ROOT / "docs/questions/how-are-bytes-sent.md"
    assert tables(page) == transfer_tables(results.get("transfer", []))
    page = ROOT / "docs/questions/how-is-dirty-text-found.md"
    assert tables(page) == {"planted": planted_table(results["planted"], CLEAN)}
    page = ROOT / "docs/planner.md"
    lines = with_seconds(replanned(read(ROOT / "results/plan_accuracy.jsonl")))
    assert tables(page) == plan_tables(lines)
    page = ROOT / "docs/questions/will-it-run-on-my-tpu.md"
    assert tables(page) == tpu_tables(results.get("tpu", []))
    page = ROOT / "docs/balance.md"
    assert tables(page) == balance_tables(results["balance"])
    page = ROOT / "docs/questions/how-do-models-come-from-hugging-face.md"
    assert tables(page) == {"hub": hub_table(results["hub"])}
    smaller = compression_tables(results.get("compression", []))
    assert tables(ROOT / "docs/compression.md") == smaller
    page = ROOT / "docs/questions/how-is-text-prepared.md"
    assert tables(page) == preparation_tables(results.get("preparation", []))
    page = ROOT / "docs/questions/how-do-parameter-servers-work.md"
    assert tables(page) == {"deaths": deaths_table(results.get("deaths", []))}
    page, found = (
        ROOT / "docs/questions/how-does-asynchronous-training-work.md",
        results.get("asynchronous", []),
    )
    assert tables(page) == {
        "staleness": loss_table(results.get("staleness", [])),
        "won-back": won_table(results.get("staleness", [])),
        "speed": speed_table(found),
        "islands": islands_table(found),
        "seconds": seconds_table(found),
    }
    page = ROOT / "docs/questions/how-are-failures-survived.md"
    assert tables(page) == {
        "flips": flips_table(results["flips"]).strip(),
        "goodput": goodput_table(results.get("goodput", [])),
        "soak": soak_table(results["soak"]).strip(),
    }
