"""The config of how rows are drawn (lm/data/rows/strata.py, parts.py, order.py)."""

from dataclasses import dataclass, field

BY_KEY = {"only": {"data.sampling.strata": ("key",)}}
GROUPED = {"only": {"data.sampling.strata": ("key", "kind")}}


@dataclass
class SamplingConfig:
    # groups of rows that are drawn from at rates of their own; key: by the folder or the
    # dataset of a document, and with data.sources by its source; kind: code, prose and
    # numbers
    strata: str = field(default="none", metadata={"choices": ("none", "key", "kind")})
    # what the rate of a stratum follows; rows: its rows; weights: its weight in
    # data.sources
    rates: str = field(default="rows", metadata={"choices": ("rows", "weights")} | BY_KEY)
    # T: a rate is proportional to rows^(1/T), or weights^(1/T); 1: as in the text, or as
    # the weights say
    temperature: float = field(default=1.0, metadata={"above": 0} | GROUPED)
    # how a batch holds the strata; stratified: in proportion to the rates; resampled: as
    # chance has it
    batches: str = field(
        default="stratified", metadata={"choices": ("stratified", "resampled")} | GROUPED
    )
    # weigh the loss so that strata and shards count in it as their shares of the text do,
    # however often they are drawn
    reweigh: bool = False
    # reweigh: the shares, by the names of the strata, that count in place of those of the
    # text; they sum to 1, and a stratum without one counts for nothing; {}: those of the
    # text
    shares: dict[str, float] = field(
        default_factory=dict,
        metadata={"only": GROUPED["only"] | {"data.sampling.reweigh": (True,)}},
    )
