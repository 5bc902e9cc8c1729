"""The config of how rows are drawn (lm/data/rows/strata.py, order.py)."""

from dataclasses import dataclass, field

GROUPED = {"only": {"data.sampling.strata": ("key", "kind")}}


@dataclass
class SamplingConfig:
    # groups of rows that are drawn from at rates of their own; key: by the folder or the
    # dataset of a document; kind: code, prose and numbers
    strata: str = field(default="none", metadata={"choices": ("none", "key", "kind")})
    # T: the rate of a stratum is proportional to rows^(1/T); 1: as in the text
    temperature: float = field(default=1.0, metadata={"above": 0} | GROUPED)
    # how a batch holds the strata; stratified: in proportion to the rates; resampled: as
    # chance has it
    batches: str = field(
        default="stratified", metadata={"choices": ("stratified", "resampled")} | GROUPED
    )
    # weigh the loss so that strata and shards count in it as their shares of the text do
    reweigh: bool = False
