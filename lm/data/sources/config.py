"""The config of where texts come from: one source, or a part of a mixture."""

from dataclasses import dataclass, field

from lm.data.sources.table import DOCUMENT_SOURCES, SOURCES, readers

# The place of files does not decide the numbers: the fingerprint covers their texts, their
# folders in the corpus and their suffixes.
BY_TEXT = {"decides": False}


def read(name: str) -> dict[str, dict]:
    """Return the metadata of a field that only some sources read."""
    return {"only": {".source": readers(name)}}


@dataclass
class TextsConfig:
    """The fields that a whole config and a part of a mixture have in common."""

    # where the texts come from (lm/data/sources)
    source: str = field(default="stdlib", metadata={"choices": SOURCES})
    # tfds: the dataset, such as lm1b; gettext: an installed package; "": all packages
    name: str = field(default="", metadata=read("name"))
    # TFDS split to train on
    split: str = field(default="train", metadata=read("split"))
    # TFDS split to evaluate on
    validation_split: str = field(default="test", metadata=read("validation_split"))
    # TFDS split with another kind of text, also evaluated at the end; "": none
    shifted_split: str = field(default="", metadata=read("shifted_split"))
    # folder where TFDS keeps its datasets; "": TFDS's own default
    tfds_dir: str = field(default="", metadata=read("tfds_dir") | {"decides": False})
    # text, jsonl, parquet: a file, a folder or a glob; parallel: the file of source lines
    path: str = field(default="", metadata=read("path") | BY_TEXT)
    # files to evaluate on; "": hold out validation_share of path
    validation_path: str = field(default="", metadata=read("validation_path") | BY_TEXT)
    # share of the text that is held out to evaluate on, if no files are given for it
    validation_share: float = field(
        default=0.05, metadata={"above": 0, "below": 1} | read("validation_share")
    )
    # files with another kind of text, also evaluated at the end; "": none
    shifted_path: str = field(default="", metadata=read("shifted_path") | BY_TEXT)
    # TFDS feature, key of a JSON line, or Parquet column that holds the text
    text_key: str = field(default="text", metadata=read("text_key"))
    # what lies between the documents of a file, whose line ends are \n here; "": a file is
    # one document
    separator: str = field(default="", metadata=read("separator"))
    # text: as it is written; regex: a regular expression, such as \n\s*\n for blank lines
    separator_kind: str = field(
        default="text", metadata={"choices": ("text", "regex")} | read("separator_kind")
    )
    # what a file or a record that cannot be read does; skip: it is counted and left out
    on_bad_record: str = field(
        default="stop", metadata={"choices": ("stop", "skip")} | read("on_bad_record")
    )


@dataclass
class SourceConfig(TextsConfig):
    """A part of a mixture; see lm/data/sources/mixture.py."""

    # where its texts come from; pairs of texts are not mixed
    source: str = field(default="stdlib", metadata={"choices": DOCUMENT_SOURCES})
    # name of this source in the mixture; the key of its documents
    label: str = ""
    # how much of it is drawn, if data.sampling.rates is weights; only the proportion of
    # the sources' weights matters; 0: it is evaluated, but not trained on
    weight: float = field(default=1.0, metadata={"at_least": 0})
