"""From documents to rows on disk.

corpus -> stages of cleaning -> tokenise -> pack -> rows on disk, cached under a fingerprint
of everything that made them. The cleaned documents are kept beside the rows.
"""

import contextlib
import errno
import hashlib
import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import filelock
from absl import logging
from tokenizers import Tokenizer

from lm.data.bigram import bigram_loss, bigrams_of
from lm.data.cleaning.clean import clean
from lm.data.cleaning.cores import Cores, Start
from lm.data.cleaning.records import Records
from lm.data.cleaning.run import PROGRESS, Cleaned
from lm.data.cleaning.table import chosen_stages
from lm.data.config import DataConfig
from lm.data.pretrained import pretrained_tokenizer, tokenizer_identity
from lm.data.rows.packing import Row
from lm.data.rows.pairs import pair_splits
from lm.data.rows.shards import ShardRows, dealt, read_shards, write_shards
from lm.data.rows.store import Rows
from lm.data.sources.corpus import SHIFTED, Corpus
from lm.data.sources.mixture import check_sources, documents_of
from lm.data.sources.pairs import PairCorpus
from lm.data.sources.table import cache_folder
from lm.data.texts import clean_corpus, document_rows, kept_documents, open_corpus
from lm.data.tokenizer import load_tokenizer, sample_of_all, train_tokenizer
from lm.data.whole import write_whole

SILENT_SECONDS = 5.0  # a longer wait for another process is reported
FORMAT = 7  # part of the fingerprint; raise it when rows are made or stored differently
FULL = (errno.ENOSPC, errno.EDQUOT)
TOKENIZER_CHARACTERS = 50_000_000  # the tokenizer is trained on at most this much text


class Data(NamedTuple):
    train: Rows
    validation: Rows
    tokenizer: Tokenizer
    meta: dict  # fingerprint, padding shares, documents, bigram loss, ...
    shifted: Rows | None = None  # held-out text of another kind


def prepare(config: DataConfig, executor: Start = Cores) -> Data:
    """Return the rows and the tokenizer; make them first if the cache does not have them.

    Many processes may call it at once: one makes the rows, the others wait. `executor`
    starts what runs the stages of cleaning; it decides nothing in the rows.
    """
    corpus = open_corpus(config)
    fingerprint = fingerprint_of(config, corpus)
    folder = rows_folder(config, fingerprint)
    if not (folder / "meta.json").exists():
        with locked(folder):
            if not (folder / "meta.json").exists():
                fill_cache(config, corpus, folder, fingerprint, executor)
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
    if config.packing == "spans":
        made_of["spans"] = asdict(config.spans)
    if config.lengths:
        made_of["lengths"] = config.lengths
    if isinstance(corpus, Corpus):
        names = [*chosen_stages(config.stages), "near_dedup"]  # leakage reads the last
        made_of["leakage"] = config.leakage
        made_of["stages"] = [(name, asdict(getattr(config, name))) for name in names]
        parted = config.shards, config.partition, config.shard_sizes
        made_of["parts"] = [*parted, config.sampling.strata, config.shuffled_share]
    if config.tokenizer == "pretrained":
        made_of |= tokenizer_identity(config.tokenizer_file, config.end_token)
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def state(config: DataConfig) -> str:
    """Tell whether the cache has the rows of a config: "absent", "begun" or "done"."""
    folder = rows_folder(config, current_fingerprint(config))
    if (folder / "meta.json").exists():
        return "done"
    return "begun" if folder.with_suffix(".partial").exists() else "absent"


def rows_folder(config: DataConfig, fingerprint: str) -> pathlib.Path:
    return cache_folder(config) / "rows" / fingerprint


def fill_cache(
    config: DataConfig,
    corpus: Corpus | PairCorpus,
    folder: pathlib.Path,
    fingerprint: str,
    executor: Start,
) -> None:
    """Make rows in a folder beside `folder`, then rename it.

    A failure leaves nothing. What a killed process leaves is used by the next one.
    """
    partial = folder.with_suffix(".partial")
    if isinstance(corpus, PairCorpus):
        shutil.rmtree(partial, ignore_errors=True)  # rows of pairs are made in one go
    try:
        (partial / PROGRESS).mkdir(parents=True, exist_ok=True)
        make_rows(config, corpus, partial, fingerprint, executor)
        shutil.rmtree(partial / PROGRESS)
        partial.rename(folder)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(error, OSError) or error.errno not in FULL:
            raise
        raise OSError(
            f"the prepared data could not be written to {folder} ({error}); make room "
            "there, or set data.cache"
        ) from error


def make_rows(
    config: DataConfig,
    corpus: Corpus | PairCorpus,
    folder: pathlib.Path,
    fingerprint: str,
    executor: Start,
) -> None:
    """Write the tokenizer, the rows of all splits and meta.json into `folder`."""
    logging.info("preparing %s", json.dumps(corpus.identity)[:200])
    texts, rows, meta = texts_and_rows(config, corpus, folder, executor)
    tokenizer = kept_tokenizer(config, texts, folder)
    vocab_size = tokenizer.get_vocab_size()
    meta |= {
        "fingerprint": fingerprint,
        "vocab_size": vocab_size,
        "row_len": config.seq_len + 1,
        "dtype": "uint16" if vocab_size <= 1 << 16 else "uint32",
        "segments": config.packing != "concat",
        "source_len": config.source_len,
        "lengths": config.lengths,
    }
    for split in corpus.splits:
        done = folder / PROGRESS / f"{split}.json"
        if not done.exists():
            made = write_shards(rows(tokenizer, split), folder, split, meta)
            write_whole(done, json.dumps(made))
        meta[split] = json.loads(done.read_text(encoding="utf-8"))
        least = config.seq_len if split == "train" else 1
        if meta[split]["targets"] < least:
            raise ValueError(
                f"the {split} text has {meta[split]['targets']} target tokens, too short "
                f"for one row of data.seq_len {config.seq_len}; give more text, or a "
                "smaller seq_len"
            )
    tell_weights(meta["train"])
    counts = (bigrams_of(folder, split, meta) for split in ("train", "validation"))
    meta["bigram_loss"] = bigram_loss(*counts)
    write_whole(folder / "meta.json", json.dumps(meta, indent=2))


def texts_and_rows(
    config: DataConfig, corpus: Corpus | PairCorpus, folder: pathlib.Path, executor: Start
) -> tuple[Callable[[], Iterable[str]], ShardRows, dict]:
    """Return the training texts, a function to the rows of a split, and what is to say.

    The rows are a list of shards, each a list of strata.
    """
    if isinstance(corpus, PairCorpus):
        texts, rows = pair_splits(corpus, config.source_len, config.seq_len)
        return (
            lambda: map(clean, texts("train")),
            lambda tokenizer, split: [[rows(tokenizer, split)]],
            {},
        )
    cleaned = clean_corpus(config, corpus, folder, executor)
    print(told(cleaned), file=sys.stderr)

    def documents(split: str) -> Records:
        return kept_documents(folder, cleaned.splits, split)

    labels = [source.label for source in config.sources]
    sources = {s: documents_of(labels, documents(s)) for s in corpus.splits if labels}
    check_sources(sources)
    parts, strata = dealt(
        documents("train"),
        config.shards,
        config.partition,
        config.shard_sizes,
        config.sampling.strata,
        config.shuffled_share,
    )

    def rows(tokenizer: Tokenizer, split: str) -> list[list[Iterable[Row]]]:
        found = documents(split)
        pack = partial(document_rows, config, tokenizer, found, split=split)
        shards = parts if split == "train" else [[range(len(found))]]
        return [[pack(numbers) for numbers in strata] for strata in shards]

    meta = {
        "bytes": cleaned.bytes,
        "documents": cleaned.splits,
        "cleaning": cleaned.report,
        "strata": strata,
    }
    return (
        lambda: (document.text for document in documents("train")),
        rows,
        meta | ({"sources": sources} if sources else {}),
    )


def told(cleaned: Cleaned) -> str:
    """Return one line about what the stages dropped and changed."""
    parts = []
    for split, left in cleaned.splits.items():
        steps = [
            f"{name} {what} {splits[split][what]:,}"
            for name, splits in cleaned.report.items()
            for what in ("dropped", "changed")
            if splits.get(split, {}).get(what)
        ]
        parts.append(f"{split} {left:,}" + (f" ({', '.join(steps)})" if steps else ""))
    return f"documents after cleaning: {'; '.join(parts)}"


def prepared_documents(config: DataConfig, fingerprint: str, split: str) -> Records:
    """Return the cleaned documents whose tokens are in the prepared rows of a split."""
    folder = rows_folder(config, fingerprint)
    counts = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["documents"]
    return kept_documents(folder, counts, split)


def kept_tokenizer(
    config: DataConfig, texts: Callable[[], Iterable[str]], folder: pathlib.Path
) -> Tokenizer:
    """Learn a tokenizer from the training texts, if a killed process has not done it."""
    file = folder / "tokenizer.json"
    if not file.exists():
        write_whole(file, tokenizer_of(config, texts()).to_str())
    return load_tokenizer(file)


def tokenizer_of(config: DataConfig, texts: Iterable[str]) -> Tokenizer:
    """Learn the tokenizer from texts, or load that of another model."""
    if config.tokenizer == "pretrained":
        return pretrained_tokenizer(
            config.tokenizer_file, config.end_token, config.vocab_size
        )
    some = sample_of_all(texts, TOKENIZER_CHARACTERS)
    return train_tokenizer(config.tokenizer, some, config.vocab_size)


def tell_weights(train: dict) -> None:
    """Print what weighted training text is worth; ValueError if its weights sum to 0."""
    if "weight" not in train:
        return
    if not train["weight"]:
        raise ValueError(
            f"the weights of the {train['targets']} training targets sum to nothing; give "
            "some of the text a weight above 0"
        )
    print(
        f"the {train['targets']} training targets are weighted: they are worth "
        f"{train['effective_targets']:.0f} of equal weight (Kish)",
        file=sys.stderr,
    )


def load(folder: pathlib.Path) -> Data:
    """Read prepared rows; ValueError if their files are damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        rows = {s: read_shards(folder, s, meta) for s in SHIFTED if s in meta}
        return Data(tokenizer=tokenizer, meta=meta, **rows)
    except Exception as error:  # each library raises errors of its own kinds
        raise ValueError(
            f"the prepared data in {folder} is damaged ({error}); remove that folder, and "
            "it is made anew"
        ) from error
