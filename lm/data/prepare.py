"""From documents to rows on disk.

corpus -> clean -> deduplicate -> tokenise -> pack -> rows on disk, cached under a
fingerprint of everything that made them.
"""

import contextlib
import errno
import hashlib
import json
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import NamedTuple

import filelock
from absl import logging
from tokenizers import Tokenizer

from lm.data.bigram import bigram_counts, bigram_loss
from lm.data.cleaning.clean import clean
from lm.data.config import DataConfig
from lm.data.pretrained import pretrained_tokenizer, tokenizer_identity
from lm.data.rows.pairs import pair_splits
from lm.data.rows.store import Rows, read_rows, write_rows
from lm.data.sources.corpus import SHIFTED, Corpus
from lm.data.sources.pairs import PairCorpus
from lm.data.sources.table import cache_folder
from lm.data.texts import document_splits, open_corpus
from lm.data.tokenizer import load_tokenizer, sample_of_all, train_tokenizer

SILENT_SECONDS = 5.0  # a longer wait for another process is reported
FORMAT = 4  # part of the fingerprint; raise it when rows are made or stored differently
FULL = (errno.ENOSPC, errno.EDQUOT)
TOKENIZER_CHARACTERS = 50_000_000  # the tokenizer is trained on at most this much text


class Data(NamedTuple):
    train: Rows
    validation: Rows
    tokenizer: Tokenizer
    meta: dict  # fingerprint, padding shares, documents, bigram loss, ...
    shifted: Rows | None = None  # held-out text of another kind


def prepare(config: DataConfig) -> Data:
    """Return the rows and the tokenizer; make them first if the cache does not have them.

    Many processes may call it at once: one makes the rows, the others wait.
    """
    corpus = open_corpus(config)
    fingerprint = fingerprint_of(config, corpus)
    folder = rows_folder(config, fingerprint)
    if not (folder / "meta.json").exists():
        with locked(folder):
            if not (folder / "meta.json").exists():
                fill_cache(config, corpus, folder, fingerprint)
    return load(folder)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Hold the lock of a folder in the cache; report a long wait for another process."""
    lock = filelock.FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=SILENT_SECONDS)
    except filelock.Timeout:
        line = f"waiting for the process that prepares {folder}, until it is done or ends"
        print(line, file=sys.stderr, flush=True)
        lock.acquire()
    except OSError as error:
        raise OSError(
            f"the prepared data cannot be kept in {folder.parent} ({error}); give another "
            "folder by --config.data.cache"
        ) from None
    try:
        yield
    finally:
        lock.release()


def load_prepared(config: DataConfig, fingerprint: str) -> Data | None:
    """Return the rows with this fingerprint from the cache; None if it has none.

    The corpus is not read, so it may have changed since.
    """
    folder = rows_folder(config, fingerprint)
    return load(folder) if (folder / "meta.json").exists() else None


def current_fingerprint(config: DataConfig) -> str:
    """Return the fingerprint of the rows that the corpus would give now."""
    return fingerprint_of(config, open_corpus(config))


def fingerprint_of(config: DataConfig, corpus: Corpus | PairCorpus) -> str:
    """Return a hash of everything that decides the rows."""
    fields = ("tokenizer", "vocab_size", "seq_len", "source_len", "packing")
    made_of = {"format": FORMAT, "corpus": corpus.identity}
    made_of |= {name: getattr(config, name) for name in fields}
    if config.tokenizer == "pretrained":
        made_of |= tokenizer_identity(config.tokenizer_file, config.end_token)
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def rows_folder(config: DataConfig, fingerprint: str) -> pathlib.Path:
    return cache_folder(config) / "rows" / fingerprint


def fill_cache(
    config: DataConfig, corpus: Corpus | PairCorpus, folder: pathlib.Path, fingerprint: str
) -> None:
    """Make rows in a folder beside `folder`, then rename it; a failure leaves nothing."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # a killed process may have left it
    try:
        partial.mkdir()
        make_rows(config, corpus, partial, fingerprint)
        partial.rename(folder)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(
            f"the prepared data could not be written to {folder} ({error}); make room "
            "there, or set data.cache"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def make_rows(
    config: DataConfig,
    corpus: Corpus | PairCorpus,
    folder: pathlib.Path,
    fingerprint: str,
) -> None:
    """Write the tokenizer, the rows of all splits and meta.json into `folder`."""
    logging.info("preparing %s", json.dumps(corpus.identity)[:200])
    if isinstance(corpus, PairCorpus):
        texts, rows = pair_splits(corpus, config.source_len, config.seq_len)
    else:
        texts, rows = document_splits(config, corpus)
    tokenizer = tokenizer_of(config, map(clean, texts("train")))
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    vocab_size = tokenizer.get_vocab_size()
    meta = {
        "fingerprint": fingerprint,
        "vocab_size": vocab_size,
        "row_len": config.seq_len + 1,
        "dtype": "uint16" if vocab_size <= 1 << 16 else "uint32",
        "segments": config.packing == "first_fit",
    }
    for split in corpus.splits:
        meta[split] = write_rows(rows(tokenizer, split), folder, split, meta)
        least = config.seq_len if split == "train" else 1
        if meta[split]["targets"] < least:
            raise ValueError(
                f"the {split} text has {meta[split]['targets']} target tokens, too short "
                f"for one row of data.seq_len {config.seq_len}; give more text, or a "
                "smaller seq_len"
            )
    counts = [
        bigram_counts(*read_rows(folder, split, meta)[:2], vocab_size)
        for split in ("train", "validation")
    ]
    meta["bigram_loss"] = bigram_loss(*counts)
    (folder / "meta.json").write_text(json.dumps(meta, indent=2), encoding="utf-8")


def tokenizer_of(config: DataConfig, texts: Iterator[str]) -> Tokenizer:
    """Learn the tokenizer from texts, or load that of another model."""
    if config.tokenizer == "pretrained":
        return pretrained_tokenizer(
            config.tokenizer_file, config.end_token, config.vocab_size
        )
    some = sample_of_all(texts, TOKENIZER_CHARACTERS)
    return train_tokenizer(config.tokenizer, some, config.vocab_size)


def load(folder: pathlib.Path) -> Data:
    """Read prepared rows; ValueError if their files are damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        rows = {s: read_rows(folder, s, meta) for s in SHIFTED if s in meta}
        return Data(tokenizer=tokenizer, meta=meta, **rows)
    except Exception as error:  # each library raises errors of its own kinds
        raise ValueError(
            f"the prepared data in {folder} is damaged ({error}); remove that folder, and "
            "it is made anew"
        ) from error
