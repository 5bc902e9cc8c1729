"""Fill in docs/config.md: every field of the configs, its values and its meaning.

python -m experiments.studies.config_page
"""

import pathlib

from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.studies.config_page.page import page
from experiments.sweeps.pages import define_page, fill

PAGE = define_page("docs/config.md")


def main() -> None:
    with user_errors():
        fill(pathlib.Path(PAGE.value), {"fields": page()})


if __name__ == "__main__":
    startup.run(main)
