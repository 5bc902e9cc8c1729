"""What data a run learns from, and how it is cut into rows."""

from dataclasses import dataclass

from lm.data.rows.packing import PACKINGS
from lm.data.tokenizer import LEAST_VOCAB_SIZE, NUM_BYTES

PAIR_SOURCES = ("docstring", "gettext", "parallel")  # of a source and a target text
SOURCES = ("stdlib", "tfds", "text", "jsonl", *PAIR_SOURCES)


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
