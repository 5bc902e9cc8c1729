"""Make the report of a sweep: one HTML page that needs nothing else, and Markdown.

python -m experiments.report runs/sweep
python -m experiments.report --diff runs/sweep
python -m experiments.report --diff runs/a runs/b

Writes report.html, report.md and figures/*.png into the sweep's folder. The report lists
runs that failed or are not complete, with their errors. With --diff the command writes no
file. It prints one table of the runs (of sweeps, or of workdirs): the config fields that
differ, then the results, with the best values in bold.
"""

import pathlib

from absl import flags

from experiments.processes.messages import say, user_errors
from experiments.run import startup
from experiments.sweeps.page import diff, write_report

DIFF = flags.DEFINE_bool(
    "diff", False, "Print the fields that differ between runs, and the results."
)


def main(*folders: str) -> None:
    paths = list(map(pathlib.Path, folders))
    with user_errors():
        if DIFF.value:
            print(diff(paths))
            return
        if len(paths) > 1:
            raise ValueError(
                f"a report is of one sweep, and {len(paths)} folders were given; give one, "
                "or --diff to compare their runs"
            )
        page = write_report(paths[0])
    say(f"wrote {page} and {page.with_suffix('.md')}")


if __name__ == "__main__":
    startup.run(main, argument="the folder of a sweep, such as runs/sweep", several=True)
