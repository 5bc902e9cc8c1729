"""Make the report of a sweep: one HTML page that needs nothing else, and Markdown.

python -m experiments.report runs/sweep
python -m experiments.report --diff runs/sweep
python -m experiments.report --diff runs/a runs/b

Writes report.html, report.md and figures/*.png into the sweep's folder. Runs that are not
complete, or failed, are told with their error. With --diff it prints one table instead, of
the runs of sweeps or of workdirs: the fields of their configs that differ, their results
beside them, the best values in bold.
"""

import pathlib

from absl import flags

from experiments.processes.messages import say, user_errors
from experiments.run import startup
from experiments.sweeps.page import diff, write_report

DIFF = flags.DEFINE_bool("diff", False, "Print what differs between runs, and the results.")


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
