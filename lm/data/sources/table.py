"""Every source of texts: a source is its own file and one row here."""

import pathlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from lm.data.sources.corpus import Corpus
from lm.data.sources.files import Policy, jsonl_corpus, parquet_corpus, text_corpus
from lm.data.sources.pairs import (
    PairCorpus,
    gettext_corpus,
    parallel_corpus,
)
from lm.data.sources.reading import compiled
from lm.data.sources.stdlib import stdlib_corpus
from lm.data.sources.tfds import tfds_corpus

Config = Any  # lm.data.config.DataConfig, which reads this table


class Source(NamedTuple):
    corpus: Callable[[Config], Corpus | PairCorpus]
    pairs: bool = False  # of a source and a target text; else documents
    reads: tuple[str, ...] = ()  # the fields of the config that only some sources read


def cache_folder(config: Config) -> pathlib.Path:
    if "://" in config.cache:
        raise ValueError(
            f"data.cache is {config.cache!r}, an address; give a folder of this machine"
        )
    try:
        return pathlib.Path(config.cache).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"data.cache is {config.cache!r}, but there is no home directory ({error}); "
            "set data.cache to another folder"
        ) from None


def open_tfds(c: Config) -> Corpus:
    splits = {"train": c.split, "validation": c.validation_split}
    if c.shifted_split:
        splits["shifted"] = c.shifted_split
    return tfds_corpus(c.name, splits, c.text_key, c.tfds_dir, c.on_bad_record)


def policy(config: Config) -> Policy:
    return Policy(config.on_bad_record, cache_folder(config))


def open_text(c: Config) -> Corpus:
    return text_corpus(
        c.path,
        c.validation_path,
        c.validation_share,
        c.shifted_path,
        compiled(c.separator, c.separator_kind == "regex"),
        policy(c),
    )


def open_records(corpus: Callable[..., Corpus]) -> Callable[[Config], Corpus]:
    return lambda c: corpus(
        c.path, c.validation_path, c.validation_share, c.text_key, c.shifted_path, policy(c)
    )


FILES = (
    *("path", "validation_path", "validation_share", "shifted_path"),
    "on_bad_record",
)
SOURCES = {
    "stdlib": Source(lambda c: stdlib_corpus(cache_folder(c))),
    "tfds": Source(
        open_tfds,
        reads=(
            *("name", "split", "validation_split", "shifted_split", "tfds_dir"),
            *("text_key", "on_bad_record"),
        ),
    ),
    "text": Source(open_text, reads=(*FILES, "separator", "separator_kind")),
    "jsonl": Source(open_records(jsonl_corpus), reads=(*FILES, "text_key")),
    "parquet": Source(open_records(parquet_corpus), reads=(*FILES, "text_key")),
    "gettext": Source(
        lambda c: gettext_corpus(c.name, c.language, c.validation_share, policy(c)),
        pairs=True,
        reads=("name", "language", "validation_share", "on_bad_record"),
    ),
    "parallel": Source(
        lambda c: parallel_corpus(c.path, c.target_path, c.validation_share, policy(c)),
        pairs=True,
        reads=("path", "target_path", "validation_share", "on_bad_record"),
    ),
}


class Names(Collection):
    """The names of the rows that a question selects, of the table as it is when asked."""

    def __init__(self, selects: Callable[[Source], bool]):
        self.selects = selects

    def __iter__(self) -> Iterator[str]:
        return (name for name, row in SOURCES.items() if self.selects(row))

    def __contains__(self, name: object) -> bool:
        return name in SOURCES and self.selects(SOURCES[name])

    def __len__(self) -> int:
        return sum(1 for _ in self)


def readers(field: str) -> Names:
    """Name the sources that read a field of the config."""
    return Names(lambda row: field in row.reads)


PAIR_SOURCES = Names(lambda row: row.pairs)
DOCUMENT_SOURCES = Names(lambda row: not row.pairs)
