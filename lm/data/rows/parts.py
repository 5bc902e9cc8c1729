"""How rows are drawn: the rate and the weight of each stratum of each shard.

Rows lie in shards, and inside a shard in strata (lm/data/rows/shards.py). A stratum of a
shard is drawn from at a rate. Where that is not the share that it should have in the loss,
its rows have a weight.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lm.data.rows.sampling import SamplingConfig
from lm.data.rows.store import Rows
from lm.data.rows.strata import check_rates, rates
from lm.data.rows.weights import effective_size, importance

MOST_TOLD = 12  # strata that the start of a run tells of


class Part(NamedTuple):
    """The rows of one stratum of one shard."""

    num_rows: int
    rate: float  # its share of the rows that are drawn from the shard
    weight: float  # of a row of it in the loss


def parts_of(
    rows: Rows, sampling: SamplingConfig, source_weights: Mapping[str, float]
) -> list[list[Part]]:
    """Return the parts of each shard; `source_weights` are those of data.sources.

    The weight of a row is the share of the loss that its part should have over the share of
    the draws that it gets. ValueError if the weights of a shard sum to nothing, and for
    text that should count but is never drawn.
    """
    shards, names = strata_of(rows)
    totals = dict(zip(names, np.sum(shards, 0).tolist(), strict=True))
    whole, wanted = sum(totals.values()), dict.fromkeys(names, 1.0)
    if sampling.shares:
        try:
            wanted = importance(totals, sampling.shares)
        except ValueError as error:
            raise ValueError(f"data.sampling.shares: {error}") from None
    found = []
    for number, sizes in enumerate(shards):
        drawn = sizes
        if sampling.rates == "weights":
            drawn = weights_of(names, sizes, source_weights, number)
        parts, chosen = [], rates(drawn, sampling.temperature).tolist()
        check_rates(names, chosen)
        for name, size, rate in zip(names, sizes, chosen, strict=True):
            share = size / whole * wanted[name] if sampling.reweigh else 0.0
            if share and not rate:
                raise ValueError(
                    f"data.sampling.reweigh should count the source {name!r}, which has "
                    "the weight 0 and is never drawn; give it a weight above 0"
                )
            weight = share * len(shards) / rate if sampling.reweigh and rate else 1.0
            parts.append(Part(size, rate, weight))
        found.append(parts)
    return found


def weights_of(
    names: Sequence[str], sizes: Sequence[int], weights: Mapping[str, float], shard: int
) -> list[float]:
    """Return the weight of each source of a shard, 0 for one without rows."""
    found = [
        weights[name] if size else 0.0 for name, size in zip(names, sizes, strict=True)
    ]
    if not sum(found):
        raise ValueError(
            f"all text of shard {shard} is of sources with the weight 0; give fewer "
            "data.shards, another data.partition, or other weights in data.sources"
        )
    return found


def strata_of(rows: Rows) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    """Return the number of rows of each shard and stratum, and the names of the strata."""
    return rows.parts or ((len(rows.tokens),),), rows.strata or ("",)


def parts_told(
    parts: Sequence[Sequence[Part]], names: Sequence[str], num_drawn: int
) -> str:
    """Return how often a run that draws so many rows draws each stratum.

    With weights, also how many rows of equal weight the drawn ones are worth.
    """
    lines = []
    for name, of_shards in zip(names, zip(*parts, strict=True), strict=True):
        rows = sum(part.num_rows for part in of_shards)
        rate = sum(part.rate for part in of_shards) / len(parts)
        # A few tokens may give no row, where packing=concat drops what does not fill one.
        epochs = num_drawn * rate / rows if rows else 0.0
        lines.append(f"{name or 'all'} {rows} rows, {rate:.2%} drawn, {epochs:.3g} epochs")
    shown = lines[:MOST_TOLD]
    if more := len(lines) - len(shown):
        shown.append(f"and {more} more")
    if any(part.weight != 1 for shard in parts for part in shard):
        share = effective_share(parts)
        shown.append(
            f"by their weights, 100 rows are worth {100 * share:.1f} of equal weight (Kish)"
        )
    return f"strata: {'; '.join(shown)}"


def effective_share(parts: Sequence[Sequence[Part]]) -> float:
    """Return the number of rows of equal weight that a drawn row is worth (Kish)."""
    each = [(part.rate / len(parts), part.weight) for shard in parts for part in shard]
    return effective_size(
        sum(rate * weight for rate, weight in each),
        sum(rate * weight**2 for rate, weight in each),
    )
