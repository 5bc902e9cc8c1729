"""Fill in the tables of a page of docs/; the prose of the page is written by hand.

A table stands between two lines of the page, and a command replaces what is between them:

    <!-- table NAME -->

    | ... |

    <!-- end -->
"""

import pathlib
import re

from absl import flags

from experiments.processes.files import write_whole

flags.disclaim_key_flags()  # --help then lists them as the command's own flags

END = "<!-- end -->"
PLACE = re.compile(rf"^<!-- table (\S+) -->\n(.*?)^{END}$", re.MULTILINE | re.DOTALL)


def define_page(page: str) -> flags.FlagHolder:
    return flags.DEFINE_string("page", page, "Page whose tables to fill in; empty: none.")


def begin(name: str) -> str:
    return f"<!-- table {name} -->"


def tables(file: pathlib.Path) -> dict[str, str]:
    """Return the tables of a page by name; ValueError if its markers are not in pairs."""
    text = file.read_text(encoding="utf-8")
    found = PLACE.findall(text)
    names = [name for name, _ in found]
    starts = re.findall(r"^<!-- table (\S+) -->$", text, re.MULTILINE)
    if names != starts or len(names) != text.count(END) or len(set(names)) < len(names):
        raise ValueError(
            f"{file}: expected a line {END!r} after each table and each name once, found "
            f"the tables {', '.join(starts)} and {text.count(END)} ends"
        )
    return {name: table.strip() for name, table in found}


def check_names(file: pathlib.Path, names: set[str]) -> None:
    """Raise ValueError if the page has no place for one of these tables."""
    if not file.is_file():
        raise ValueError(f"{file}: there is no such page; give an empty --page= for none")
    for name in sorted(names - tables(file).keys()):
        raise ValueError(
            f"{file} has no place for the table {name}; add the lines {begin(name)!r} and "
            f"{END!r}, or give an empty --page= to fill in no page"
        )


def fill(file: pathlib.Path, new: dict[str, str]) -> None:
    """Replace the named tables of a page, and nothing else; ValueError without a place."""
    check_names(file, new.keys())

    def replaced(match: re.Match) -> str:
        name = match[1]
        return f"{begin(name)}\n\n{new[name].strip()}\n\n{END}" if name in new else match[0]

    write_whole(file, PLACE.sub(replaced, file.read_text(encoding="utf-8")))
