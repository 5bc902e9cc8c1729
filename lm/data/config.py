"""What data a run learns from, and how it is cut into rows."""

from dataclasses import dataclass, field

from lm.data.rows.packing import PACKINGS
from lm.data.sources.table import DOCUMENT_SOURCES, PAIR_SOURCES, SOURCES, readers
from lm.data.tokenizer import LEAST_VOCAB_SIZE, NUM_BYTES

PAIRS = {"data.source": PAIR_SOURCES}
DOCUMENTS = {"data.source": DOCUMENT_SOURCES}
# Where files lie decides nothing: the fingerprint tells whether the text is the same.
BY_TEXT = {"decides": False}


def read(name: str) -> dict[str, dict]:
    """Return the metadata of a field that only some sources read."""
    return {"only": {"data.source": readers(name)}}


@dataclass
class DataConfig:
    # where texts come from (lm/data/sources)
    source: str = field(default="stdlib", metadata={"choices": SOURCES})
    # tfds: the dataset, such as lm1b; gettext: the package, "" for all
    name: str = field(default="", metadata=read("name"))
    # the split to train on
    split: str = field(default="train", metadata=read("split"))
    # the split held out
    validation_split: str = field(default="test", metadata=read("validation_split"))
    # held-out text of another kind; "": none
    shifted_split: str = field(default="", metadata=read("shifted_split"))
    # where prepared datasets lie; "": TFDS's default
    tfds_dir: str = field(default="", metadata=read("tfds_dir") | {"decides": False})
    # text, jsonl: a file, a folder or a glob; parallel: the sources' file
    path: str = field(default="", metadata=read("path") | BY_TEXT)
    # the targets' file, as many lines
    target_path: str = field(default="", metadata=read("target_path") | BY_TEXT)
    # of the translations
    language: str = field(default="de", metadata=read("language"))
    # held-out files; "": a share of path
    validation_path: str = field(default="", metadata=read("validation_path") | BY_TEXT)
    # held out where there are no files or splits for it
    validation_share: float = field(
        default=0.05, metadata={"above": 0, "below": 1} | read("validation_share")
    )
    # held-out files of another kind; "": none
    shifted_path: str = field(default="", metadata=read("shifted_path") | BY_TEXT)
    # the feature that holds the text
    text_key: str = field(default="text", metadata=read("text_key"))
    # what a token is; all spell unknown pieces as bytes
    tokenizer: str = field(default="bpe", metadata={"choices": tuple(LEAST_VOCAB_SIZE)})
    # at most; 257 holds the bytes alone
    vocab_size: int = field(default=4096, metadata={"at_least": NUM_BYTES})
    # T, target tokens in a row; of pairs, with those of the source
    seq_len: int = field(default=256, metadata={"at_least": 2})
    # the part of seq_len that is the source's
    source_len: int = field(default=0, metadata={"at_least": 0, "only": PAIRS})
    batch_size: int = field(default=32, metadata={"at_least": 1})  # global, in rows
    # first_fit: documents share rows; concat: one stream, no mask
    packing: str = field(
        default="first_fit", metadata={"choices": tuple(PACKINGS), "only": DOCUMENTS}
    )
    # where prepared data lies
    cache: str = field(default="~/.cache/lockstep", metadata={"decides": False})

    def validate(self) -> None:
        """Check what needs more than one field; ValueError."""
        self.validate_vocab_size()
        if self.source in PAIR_SOURCES and not 2 <= self.source_len <= self.seq_len - 2:
            raise ValueError(
                f"data.source_len is {self.source_len}; of data.seq_len {self.seq_len} "
                "tokens it must leave at least 2 to the source and 2 to the target"
            )

    def validate_vocab_size(self) -> None:
        least = LEAST_VOCAB_SIZE[self.tokenizer]
        exact = self.tokenizer == "byte"
        if self.vocab_size < least or exact and self.vocab_size > least:
            raise ValueError(
                f"data.vocab_size is {self.vocab_size}; for data.tokenizer "
                f"{self.tokenizer!r} it must be {'' if exact else 'at least '}{least}: "
                f"{NUM_BYTES} are the bytes and the end-of-text mark"
            )
