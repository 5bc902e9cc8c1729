"""From documents to the batch of step k.

corpus -> clean -> deduplicate -> tokenise -> pack -> rows on disk, cached under a
fingerprint of everything that made them. The batch of step k is a pure function of
(seed, k): Grain permutes row numbers by index, so the position in the data *is* the step,
and resuming needs no iterator state on any number of devices.
"""

import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import filelock
import grain
import numpy as np
from absl import logging
from tokenizers import Tokenizer
from tqdm import tqdm

from lm.data.classes import encode_classes
from lm.data.clean import clean
from lm.data.corpus import (
    SHIFTED,
    Corpus,
    jsonl_corpus,
    stdlib_corpus,
    text_corpus,
    tfds_corpus,
)
from lm.data.dedup import deduplicate
from lm.data.packing import PACKINGS, Row, SplitRows, Texts
from lm.data.pair_rows import pair_splits
from lm.data.pairs import (
    PairCorpus,
    docstring_corpus,
    gettext_corpus,
    parallel_corpus,
)
from lm.data.tokenizer import (
    LEAST_VOCAB_SIZE,
    NUM_BYTES,
    encode_documents,
    load_tokenizer,
    train_tokenizer,
)
from lm.models.ngram import bigram_counts, bigram_loss

FORMAT = 2  # part of the fingerprint; changes when the files or their making change
PAIR_SOURCES = ("docstring", "gettext", "parallel")  # of a source and a target text
SOURCES = ("stdlib", "tfds", "text", "jsonl", *PAIR_SOURCES)
TOKENIZER_CHARACTERS = 50_000_000  # the tokenizer is trained on at most this much text
SHIFTED_CHARACTERS = 300_000  # of the shifted text, at most


@dataclass
class DataConfig:
    source: str = "stdlib"  # stdlib | tfds | text | jsonl | docstring | gettext | parallel
    name: str = ""  # tfds: the dataset, such as lm1b; gettext: the package, "" for all
    split: str = "train"  # tfds: the split to train on
    validation_split: str = "test"  # tfds: the split held out
    shifted_split: str = ""  # tfds: held-out text of another kind; "": none
    tfds_dir: str = ""  # tfds: where prepared datasets lie; "": TFDS's default
    path: str = ""  # text, jsonl: a file, a folder or a glob; parallel: the sources' file
    target_path: str = ""  # parallel: the targets' file, as many lines
    language: str = "de"  # gettext: of the translations
    validation_path: str = ""  # text, jsonl: held-out files; "": a share of path
    validation_share: float = 0.05  # held out where there are no files or splits for it
    shifted_path: str = ""  # text, jsonl: held-out files of another kind; "": none
    text_key: str = "text"  # tfds, jsonl: the feature that holds the text
    tokenizer: str = "bpe"  # bpe | byte | character | word
    vocab_size: int = 4096  # at most; 257 holds the bytes alone
    seq_len: int = 256  # T, target tokens in a row; of pairs, with those of the source
    source_len: int = 0  # pairs: the part of seq_len that is the source's
    batch_size: int = 32  # global, in rows
    packing: str = "first_fit"  # first_fit (segments) | concat (one stream, no mask)
    cache: str = "~/.cache/lockstep"  # where prepared data lies

    def validate(self) -> None:
        for field, options in [
            ("source", SOURCES),
            ("tokenizer", tuple(LEAST_VOCAB_SIZE)),
            ("packing", tuple(PACKINGS)),
        ]:
            if (value := getattr(self, field)) not in options:
                raise ValueError(
                    f"data.{field} is {value!r}; choose one of {', '.join(options)}"
                )
        for field, least in [("seq_len", 2), ("batch_size", 1)]:
            if getattr(self, field) < least:
                raise ValueError(
                    f"data.{field} is {getattr(self, field)}; it must be at least {least}"
                )
        if not 0 < self.validation_share < 1:
            raise ValueError(
                f"data.validation_share is {self.validation_share}; "
                "expected a share between 0 and 1"
            )
        self.validate_vocab_size()
        self.validate_pairs()

    def validate_vocab_size(self) -> None:
        least = LEAST_VOCAB_SIZE[self.tokenizer]
        exact = self.tokenizer == "byte"
        if self.vocab_size < least or exact and self.vocab_size > least:
            raise ValueError(
                f"data.vocab_size is {self.vocab_size}; for data.tokenizer "
                f"{self.tokenizer!r} it must be {'' if exact else 'at least '}{least}: "
                f"{NUM_BYTES} are the bytes and the end-of-text mark"
            )

    def validate_pairs(self) -> None:
        if self.source not in PAIR_SOURCES:
            if self.source_len:
                raise ValueError(
                    f"data.source_len is {self.source_len}, but data.source "
                    f"{self.source!r} has no source texts; set it to 0, or choose one of "
                    f"{', '.join(PAIR_SOURCES)}"
                )
            return
        if not 2 <= self.source_len <= self.seq_len - 2:
            raise ValueError(
                f"data.source_len is {self.source_len}; of data.seq_len {self.seq_len} "
                "tokens it must leave at least 2 to the source and 2 to the target"
            )
        if self.packing != "first_fit":
            raise ValueError(
                f"data.packing is {self.packing!r}, but a row of data.source "
                f"{self.source!r} is one pair; unset data.packing"
            )


class Rows(NamedTuple):
    tokens: np.ndarray  # [R, T + 1], memory-mapped
    segments: np.ndarray | None  # [R, T + 1]; None: every row is one segment
    classes: np.ndarray | None = None  # [R, T + 1], where they are asked for


class Data(NamedTuple):
    train: Rows
    validation: Rows
    tokenizer: Tokenizer
    meta: dict  # fingerprint, padding shares, documents, bigram loss, ...
    shifted: Rows | None = None  # held-out text of another kind


def open_corpus(config: DataConfig) -> Corpus | PairCorpus:
    c = config
    if c.source == "docstring":
        return docstring_corpus()
    if c.source == "gettext":
        return gettext_corpus(c.name, c.language, c.validation_share)
    if c.source == "parallel":
        return parallel_corpus(c.path, c.target_path, c.validation_share)
    if c.source == "stdlib":
        return stdlib_corpus(pathlib.Path(c.cache).expanduser())
    if c.source == "tfds":
        splits = {"train": c.split, "validation": c.validation_split}
        if c.shifted_split:
            splits["shifted"] = c.shifted_split
        return tfds_corpus(c.name, splits, c.text_key, c.tfds_dir)
    if c.source == "text":
        return text_corpus(c.path, c.validation_path, c.validation_share, c.shifted_path)
    return jsonl_corpus(
        c.path, c.validation_path, c.validation_share, c.text_key, c.shifted_path
    )


def prepare(config: DataConfig) -> Data:
    """Return the rows and the tokenizer, making them first where the cache has none.

    Safe to call from many processes at once: one makes them, the others wait.
    """
    corpus = open_corpus(config)
    made_of = {
        "format": FORMAT,
        "corpus": corpus.identity,
        "vocab_size": config.vocab_size,
        "seq_len": config.seq_len,
        "packing": config.packing,
    }
    if config.tokenizer != "bpe":  # as caches have it that were made before the others
        made_of["tokenizer"] = config.tokenizer
    if config.source in PAIR_SOURCES:
        made_of["source_len"] = config.source_len
    fingerprint = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[
        :16
    ]
    cache = pathlib.Path(config.cache).expanduser()
    folder = cache / "rows" / fingerprint
    if not (folder / "meta.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):
            if not (folder / "meta.json").exists():
                partial = folder.with_suffix(".partial")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                make_rows(config, corpus, partial, fingerprint)
                partial.rename(folder)
    return load(folder)


def make_rows(
    config: DataConfig,
    corpus: Corpus | PairCorpus,
    folder: pathlib.Path,
    fingerprint: str,
) -> None:
    logging.info("preparing %s", json.dumps(corpus.identity)[:200])
    if isinstance(corpus, PairCorpus):
        texts, rows = pair_splits(corpus, config.source_len, config.seq_len)
    else:
        texts, rows = document_splits(config, corpus)
    tokenizer = train_tokenizer(
        config.tokenizer,
        sample(map(clean, texts("train")), TOKENIZER_CHARACTERS),
        config.vocab_size,
    )
    tokenizer.save(str(folder / "tokenizer.json"))
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
    (folder / "meta.json").write_text(json.dumps(meta, indent=2))


def split_texts(corpus: Corpus, split: str) -> Iterator[str]:
    """Yield a split's texts, cleaned; of the shifted one as many as are used."""
    texts = map(clean, corpus.documents(split))
    return sample(texts, SHIFTED_CHARACTERS) if split == "shifted" else texts


def document_splits(config: DataConfig, corpus: Corpus) -> tuple[Texts, SplitRows]:
    """Return the functions from a split to its texts and to its rows, training first."""
    seen: set[bytes] = set()

    def rows(tokenizer: Tokenizer, split: str) -> Iterable[Row]:
        texts = split_texts(corpus, split)
        documents = tqdm(texts, f"prepare {split}", unit=" documents")
        encoded = encode_documents(tokenizer, deduplicate(documents, seen))
        return PACKINGS[config.packing](encoded, config.seq_len)

    return corpus.documents, rows


def training_texts(config: DataConfig) -> Iterator[str]:
    return split_texts(open_corpus(config), "train")


def held_out_texts(config: DataConfig, split: str) -> list[str]:
    """Return the texts of which the rows of a held-out split were made."""
    corpus, seen = open_corpus(config), set()
    for before in corpus.splits:
        found = list(deduplicate(split_texts(corpus, before), seen))
        if before == split:
            return found
    raise ValueError(f"the corpus has no split {split!r}")


def pack_texts(
    config: DataConfig, tokenizer: Tokenizer, texts: list[str], classes: bool = False
) -> Rows:
    """Pack texts into rows in memory, with the classes of their tokens if asked for."""
    pack = PACKINGS[config.packing]

    def rows(encoded: Iterable[np.ndarray]) -> list[np.ndarray]:
        return [np.stack(x) for x in zip(*pack(encoded, config.seq_len), strict=True)]

    tokens, segments = rows(encode_documents(tokenizer, texts))
    # Packing goes by lengths alone, so the classes come to lie where their tokens do.
    found = rows(encode_classes(texts, tokenizer))[0] if classes else None
    return Rows(tokens, segments, found)


def sample(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        yield text
        characters -= len(text)


def write_rows(
    rows: Iterable[Row],
    folder: pathlib.Path,
    split: str,
    meta: dict,
) -> dict[str, float]:
    """Append rows to the split's files; return their number and the share of padding."""
    num_rows = num_targets = 0
    with (
        (folder / f"{split}.tokens").open("wb") as tokens_file,
        (folder / f"{split}.segments").open("wb") as segments_file,
    ):
        for tokens, segments in rows:
            tokens_file.write(tokens.astype(meta["dtype"]).tobytes())
            if meta["segments"]:
                segments_file.write(segments.astype(np.uint16).tobytes())
            num_rows += 1
            num_targets += np.count_nonzero(
                (segments[1:] == segments[:-1]) & (segments[1:] > 0)
            )
    size = num_rows * (meta["row_len"] - 1)
    return {
        "rows": num_rows,
        "targets": int(num_targets),
        # The share of positions that train nothing: padding, and one a piece in a row.
        "padding": 1 - num_targets / size if size else 0.0,
    }


def read_rows(folder: pathlib.Path, split: str, meta: dict) -> Rows:
    shape = (meta[split]["rows"], meta["row_len"])
    tokens = np.memmap(folder / f"{split}.tokens", meta["dtype"], "r", shape=shape)
    if not meta["segments"]:
        return Rows(tokens, np.broadcast_to(np.uint16(1), shape))
    return Rows(tokens, np.memmap(folder / f"{split}.segments", "uint16", "r", shape=shape))


def load(folder: pathlib.Path) -> Data:
    meta = json.loads((folder / "meta.json").read_text())
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    rows = {s: read_rows(folder, s, meta) for s in SHIFTED if s in meta}
    if not meta["segments"]:
        rows = {split: r._replace(segments=None) for split, r in rows.items()}
    return Data(tokenizer=tokenizer, meta=meta, **rows)


def row_order(num_rows: int, seed: int) -> grain.MapDataset:
    """Return position -> row number: each epoch is another permutation of all rows."""
    return grain.MapDataset.range(num_rows).seed(seed).shuffle().repeat()


def step_rows(num_rows: int, seed: int, batch_size: int, step: int) -> list[int]:
    """Return the numbers of the rows that make the global batch of a step."""
    order = row_order(num_rows, seed)
    return [order[i] for i in range(step * batch_size, (step + 1) * batch_size)]


def train_batches(
    rows: Rows,
    seed: int,
    batch_size: int,
    start: int,
    stop: int,
    process: int = 0,
    num_processes: int = 1,
) -> grain.IterDataset[dict[str, np.ndarray]]:
    """Return this process's rows of the batches of steps start, ..., stop - 1.

    A process loads a contiguous part of each global batch and nothing else. `row` is a
    row's place in the global batch; dropout is drawn from it.
    """
    order = row_order(len(rows.tokens), seed)
    local = batch_size // num_processes

    def batch(step: int) -> dict[str, np.ndarray]:
        places = np.arange(process * local, (process + 1) * local, dtype=np.int32)
        index = [order[int(i)] for i in step * batch_size + places.astype(np.int64)]
        return read_batch(rows, index, places)

    steps = grain.MapDataset.range(start, stop).map(batch)
    return steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))


def validation_batches(
    rows: Rows, batch_size: int, num_batches: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yield `num_batches` global batches (0: all rows once), always in the same order.

    The last batch is filled up with empty rows, which count for nothing.
    """
    order = np.random.default_rng(0).permutation(len(rows.tokens))
    order = order[: num_batches * batch_size or None]
    places = np.arange(batch_size, dtype=np.int32)
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        batch = read_batch(rows, index, places)
        batch.setdefault("segments", np.ones_like(batch["tokens"]))
        missing = ((0, batch_size - len(index)), (0, 0))
        padded = {k: np.pad(x, missing) for k, x in batch.items() if k != "row"}
        yield padded | {"row": places}


def read_batch(rows: Rows, index, places: np.ndarray) -> dict[str, np.ndarray]:
    batch = {"tokens": rows.tokens[index].astype(np.int32), "row": places}
    if rows.segments is not None:
        batch["segments"] = rows.segments[index].astype(np.int32)
    if rows.classes is not None:
        batch["classes"] = rows.classes[index].astype(np.int32)
    return batch


def target_bytes(batch: dict[str, np.ndarray], lengths: np.ndarray) -> int:
    """Count the bytes of text that a batch's targets stand for."""
    segments = batch["segments"]
    inside = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return int(lengths[batch["tokens"][:, 1:]][inside].sum())
