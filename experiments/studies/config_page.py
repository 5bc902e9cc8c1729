"""Write docs/config.md: every field of a config, its values, and what it is.

python -m experiments.studies.config_page
"""

import pathlib

from absl import flags

from experiments.run import startup
from experiments.sweeps.config_page import page

OUT = flags.DEFINE_string("out", "docs/config.md", "The page to write.")


def main() -> None:
    pathlib.Path(OUT.value).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    startup.run(main)
