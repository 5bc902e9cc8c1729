"""The text of the league: the Python files of large packages that requirements-dev.txt has.

One folder with one file, in which a document is a module. The same versions of the packages
give the same text, and its fingerprint stands in every line of results.
"""

import hashlib
import json
import pathlib
from importlib import metadata

from experiments.processes.files import write_whole

# By name, so that a new requirement does not change the text.
PACKAGES = (
    "Django",
    "flax",
    "grain",
    "jax",
    "matplotlib",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "pygments",
    "scikit-learn",
    "scipy",
    "tensorflow-datasets",
)
TESTS = {"test", "tests"}  # folders whose modules repeat each other


def modules(package: str) -> list[str]:
    """Return the texts of the modules of an installed package, by their paths."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"the package {package} is not installed, and the league's text is the modules "
            f"of {', '.join(PACKAGES)}; pip install -r requirements-dev.txt"
        ) from None
    found = []
    for file in sorted(files, key=str):
        place = pathlib.Path(file.locate())
        if file.suffix == ".py" and not TESTS & {*file.parts} and place.is_file():
            found.append(place.read_text(encoding="utf-8", errors="replace"))
    return [text for text in found if text.strip()]


def write_corpus(folder: pathlib.Path) -> str:
    """Write the documents into the folder, if they are not there; return a fingerprint."""
    file = folder / "documents.jsonl"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        texts = [text for package in PACKAGES for text in modules(package)]
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        write_whole(file, "".join(lines))
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]
