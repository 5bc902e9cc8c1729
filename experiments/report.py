"""Make the report of a sweep: one HTML page that needs nothing else, and Markdown.

python -m experiments.report runs/sweep

Writes report.html, report.md and figures/*.png into the sweep's folder. Runs that are not
complete, or failed, are told with their error.
"""

import pathlib

from experiments.processes.messages import say, user_errors
from experiments.run import startup
from experiments.sweeps.page import write_report


def main(folder: str) -> None:
    with user_errors():
        page = write_report(pathlib.Path(folder))
    say(f"wrote {page} and {page.with_suffix('.md')}")


if __name__ == "__main__":
    startup.run(main, argument="the folder of a sweep, such as runs/sweep")
