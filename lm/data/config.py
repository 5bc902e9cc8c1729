"""The config of the data: where texts come from, and how they are cut into rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

from lm.data.cleaning.anomaly import AnomalyConfig
from lm.data.cleaning.exact_dedup import ExactDedupConfig
from lm.data.cleaning.fix import FixConfig
from lm.data.cleaning.near_dedup import NearDedupConfig
from lm.data.cleaning.normalise import NormaliseConfig
from lm.data.cleaning.table import chosen_stages
from lm.data.rows.augment import AugmentConfig
from lm.data.rows.buckets import bucket_lengths
from lm.data.rows.growth import check_growth
from lm.data.rows.packing import PACKINGS
from lm.data.rows.partition import KINDS, PARTITIONS
from lm.data.rows.sampling import SamplingConfig
from lm.data.rows.spans import SpansConfig, longest_piece
from lm.data.sources.config import BY_TEXT, SourceConfig, TextsConfig, read
from lm.data.sources.table import DOCUMENT_SOURCES, PAIR_SOURCES
from lm.data.tokenizer import LEAST_VOCAB_SIZE, NUM_BYTES

DOCUMENTS = {"data.source": DOCUMENT_SOURCES}
PRETRAINED = {"only": {"data.tokenizer": ("pretrained",)}}
LEAKAGE = ("drop", "refuse", "keep")


@dataclass
class DataConfig(TextsConfig):
    # several sources that are mixed, each a SourceConfig, in place of one data.source
    sources: tuple[SourceConfig, ...] = ()
    # file of target lines; line i is the target of line i of path
    target_path: str = field(default="", metadata=read("target_path") | BY_TEXT)
    # language of the translations, as gettext names it
    language: str = field(default="de", metadata=read("language"))
    # stages of cleaning in their order, separated by commas (lm/data/cleaning); "": none
    stages: str = field(
        default="fix,normalise,exact_dedup,near_dedup", metadata={"only": DOCUMENTS}
    )
    # each stage has a config of its own, which experiments.inspect reads too
    fix: FixConfig = field(default_factory=FixConfig)
    normalise: NormaliseConfig = field(default_factory=NormaliseConfig)
    exact_dedup: ExactDedupConfig = field(default_factory=ExactDedupConfig)
    near_dedup: NearDedupConfig = field(default_factory=NearDedupConfig)
    anomaly: AnomalyConfig = field(default_factory=AnomalyConfig)
    # a held-out document that repeats a training document: drop it, refuse to go on, or
    # keep it
    leakage: str = field(default="drop", metadata={"choices": LEAKAGE, "only": DOCUMENTS})
    # what a token is; each kind writes pieces that it does not know as bytes; pretrained:
    # the tokenizer of another model
    tokenizer: str = field(
        default="bpe", metadata={"choices": (*LEAST_VOCAB_SIZE, "pretrained")}
    )
    # pretrained: the tokenizer.json
    tokenizer_file: str = field(default="", metadata=PRETRAINED | BY_TEXT)
    # pretrained: the token that ends a text; "": as tokenizer_config.json beside it says
    end_token: str = field(default="", metadata=PRETRAINED)
    # most tokens that the tokenizer learns; 257: the bytes and the end-of-text mark alone;
    # pretrained: how many it has
    vocab_size: int = field(default=4096, metadata={"at_least": NUM_BYTES})
    # T, tokens in a row that the model reads; with pairs, source and target together
    seq_len: int = field(default=256, metadata={"at_least": 2})
    # tokens of seq_len that are reserved for the source
    source_len: int = field(default=0, metadata={"at_least": 0})
    # rows in a step, over all devices together
    batch_size: int = field(default=32, metadata={"at_least": 1})
    # ((steps, rows), ...): after so many steps a batch has so many rows; the learning rate
    # follows its own schedule, by steps
    growth: tuple = ()
    # batches of rows of about the same length, cut to it: the shorter the rows, the more of
    # them, so that batch_size x seq_len positions are in each (pairs, or packing=none)
    equal_tokens: bool = False
    # arrange the rows of a batch over the devices so that these have about the same number
    # of tokens (pairs, or packing=none)
    level: bool = field(default=False, metadata={"decides": False})
    # first_fit: documents share rows; concat: one stream, no mask; none: each has its own
    # rows, filled up with padding; spans: pairs of a text and runs taken out of it (T5)
    packing: str = field(
        default="first_fit", metadata={"choices": (*PACKINGS, "spans"), "only": DOCUMENTS}
    )
    spans: SpansConfig = field(
        default_factory=SpansConfig, metadata={"only": {"data.packing": ("spans",)}}
    )
    # N, parts of the training documents that are packed and shuffled each by itself; place
    # p of a batch of B rows belongs to part p N // B, so that replicas see different text
    shards: int = field(default=1, metadata={"at_least": 1, "only": DOCUMENTS})
    # which shard a document goes to (lm/data/rows/partition.py)
    partition: str = field(
        default="hash", metadata={"choices": tuple(PARTITIONS), "only": DOCUMENTS}
    )
    # equal: a full shard's documents go to the next nearest; natural: as they fall
    shard_sizes: str = field(
        default="equal", metadata={"choices": ("equal", "natural"), "only": DOCUMENTS}
    )
    # share of the documents that a hash deals to the shards, whatever the partition
    shuffled_share: float = field(
        default=0.0, metadata={"at_least": 0, "at_most": 1, "only": DOCUMENTS}
    )
    sampling: SamplingConfig = field(
        default_factory=SamplingConfig, metadata={"only": DOCUMENTS}
    )
    augment: AugmentConfig = field(
        default_factory=AugmentConfig, metadata={"only": DOCUMENTS}
    )
    # folder where prepared data is kept
    cache: str = field(default="~/.cache/lockstep", metadata={"decides": False})

    def validate(self) -> None:
        """Raise ValueError for fields that do not fit together."""
        self.validate_vocab_size()
        chosen_stages(self.stages)
        self.anomaly.chosen()
        self.validate_shards()
        self.validate_sources()
        self.validate_strata()
        self.validate_equal_tokens()
        self.validate_level()
        check_growth(self.batch_size, self.growth, self.shards)
        self.validate_source_len()

    @property
    def pairs(self) -> bool:
        """Whether a row is a source and a target; else it is of documents."""
        return self.source in PAIR_SOURCES or self.packing == "spans"

    def validate_source_len(self) -> None:
        if not self.pairs and self.source_len:
            raise ValueError(
                f"data.source_len is {self.source_len}, but it has no effect where "
                f"data.source is {self.source!r} and data.packing {self.packing!r}; unset "
                f"it, let data.packing be 'spans', or let data.source be "
                f"{' or '.join(map(repr, PAIR_SOURCES))}"
            )
        if self.pairs and not 2 <= self.source_len <= self.seq_len - 2:
            raise ValueError(
                f"data.source_len is {self.source_len}; it must be at least 2, and leave "
                f"at least 2 of data.seq_len {self.seq_len} for the target"
            )
        if self.packing == "spans":
            longest_piece(self.spans, self.seq_len, self.source_len)
            if self.tokenizer == "pretrained":
                raise ValueError(
                    "data.packing is 'spans', whose sentinels are tokens of single bytes "
                    "as our tokenizers have them, but data.tokenizer is 'pretrained'; "
                    "choose another of the two"
                )

    def alone(self, source: SourceConfig) -> "DataConfig":
        """Return this config with one source of the mixture as its only text."""
        read = {each.name: getattr(source, each.name) for each in fields(TextsConfig)}
        return replace(self, sources=(), **read)

    @property
    def source_weights(self) -> dict[str, float]:
        return {source.label: source.weight for source in self.sources}

    def validate_sources(self) -> None:
        if not self.sources:
            if self.sampling.rates == "weights":
                raise ValueError(
                    "data.sampling.rates is 'weights', but there are no data.sources to "
                    "have weights; give some, or let it be 'rows'"
                )
            return
        for each in fields(TextsConfig):
            if (value := getattr(self, each.name)) != each.default:
                raise ValueError(
                    f"data.{each.name} is {value!r}, but data.sources is given: say it of "
                    "one of those, or leave them out"
                )
        check_labels([source.label for source in self.sources])
        self.validate_source_weights()

    def validate_source_weights(self) -> None:
        told = ", ".join(f"{name} {x:g}" for name, x in self.source_weights.items())
        if self.sampling.rates == "weights" and not sum(self.source_weights.values()):
            raise ValueError(
                f"the weights of data.sources ({told}) sum to nothing; give one that is "
                "above 0"
            )
        if self.sampling.rates != "weights" and set(self.source_weights.values()) != {1}:
            raise ValueError(
                f"data.sources have weights ({told}), but data.sampling.rates is "
                f"{self.sampling.rates!r}; set data.sampling.strata=key and "
                "data.sampling.rates=weights, or leave the weights at 1"
            )

    def validate_strata(self) -> None:
        """Refuse names of strata that cannot be; those of folders are not known yet."""
        known = {"kind": KINDS, "key": tuple(self.source_weights)}
        names = known.get(self.sampling.strata)
        for field_name, given in (
            ("data.sampling.shares", tuple(self.sampling.shares)),
            ("data.augment.strata", self.augment.names),
        ):
            if names and (unknown := [name for name in given if name not in names]):
                raise ValueError(
                    f"{field_name} names {unknown[0]!r}; data.sampling.strata="
                    f"{self.sampling.strata} has {', '.join(names)}"
                )

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of the rows in a batch of equal tokens; () without such batches."""
        return bucket_lengths(self.seq_len, self.source_len) if self.equal_tokens else ()

    def validate_equal_tokens(self) -> None:
        if not self.equal_tokens:
            return
        if not self.pairs and self.packing != "none":
            raise ValueError(
                f"data.equal_tokens is set, but data.packing is {self.packing!r}, which "
                "fills all rows; set data.packing=none, or unset it"
            )
        if self.growth or self.shards > 1 or self.sampling != SamplingConfig():
            raise ValueError(
                "data.equal_tokens is set, and decides which rows share a batch; unset it, "
                "or data.growth, data.shards and data.sampling"
            )
        if len(self.lengths) < 2:
            raise ValueError(
                f"data.equal_tokens halves rows, but data.seq_len {self.seq_len} and "
                f"data.source_len {self.source_len} cannot be halved; give even numbers"
            )

    def validate_level(self) -> None:
        if not self.level:
            return
        if not self.pairs and self.packing != "none":
            raise ValueError(
                f"data.level is set, but data.packing is {self.packing!r}, which fills all "
                "rows; set data.packing=none, or unset it"
            )
        if self.shards > 1:
            raise ValueError(
                f"data.level is set, but data.shards {self.shards} says which rows are on "
                "which replica; unset one of them"
            )

    def validate_shards(self) -> None:
        parts = {
            name: getattr(self, name)
            for name in ("partition", "shard_sizes", "shuffled_share")
            if getattr(self, name) != getattr(DataConfig, name)
        }
        if self.shards == 1 and parts:
            told = ", ".join(f"data.{name} is {value!r}" for name, value in parts.items())
            raise ValueError(
                f"{told}, but data.shards is 1: there is nothing to divide; set "
                "data.shards, or unset the others"
            )
        if self.batch_size % self.shards:
            raise ValueError(
                f"data.batch_size {self.batch_size} is not divisible by data.shards "
                f"{self.shards}; change one of them"
            )

    def validate_vocab_size(self) -> None:
        if self.tokenizer == "pretrained" and not self.tokenizer_file:
            raise ValueError(
                "data.tokenizer_file is empty; give the tokenizer.json of a model"
            )
        least = LEAST_VOCAB_SIZE.get(self.tokenizer, NUM_BYTES)
        exact = self.tokenizer == "byte"
        if self.vocab_size < least or exact and self.vocab_size > least:
            raise ValueError(
                f"data.vocab_size is {self.vocab_size}; for data.tokenizer "
                f"{self.tokenizer!r} it must be {'' if exact else 'at least '}{least}: "
                f"{NUM_BYTES} are the bytes and the end-of-text mark"
            )


def check_labels(labels: Sequence[str]) -> None:
    """Raise ValueError unless each source of a mixture has a name of its own."""
    for number, label in enumerate(labels):
        if not label or "," in label:
            raise ValueError(
                f"data.sources[{number}].label is {label!r}; give a name without a comma"
            )
        if label in labels[:number]:
            raise ValueError(
                f"data.sources[{labels.index(label)}] and [{number}] have the same label "
                f"{label!r}; give each a name of its own"
            )
