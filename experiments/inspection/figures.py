"""The pictures of a corpus: lengths, findings, shards."""

from typing import Any

import numpy as np

from experiments.inspection.survey import Survey
from experiments.sweeps.looks import (
    COLORS,
    WIDTH,
    log_ticks,
    plain_ticks,
    png,
    pyplot,
    ticker,
)

BINS = 40
MOST_KINDS, MOST_SHARDS = 12, 64


def lengths(survey: Survey) -> bytes:
    """Documents by their length, in tokens and in bytes."""
    figure, every = pyplot.subplots(1, 2, figsize=(WIDTH, 2.8), layout="constrained")
    for axes, what in zip(every, ("tokens", "bytes"), strict=True):
        sizes = {s: np.asarray(getattr(x, what)) for s, x in survey.splits.items()}
        largest = max((x.max() for x in sizes.values() if len(x)), default=1)
        edges = np.geomspace(1, max(2, largest + 1), BINS)
        low = edges[-1]
        for index, (split, each) in enumerate(sizes.items()):
            filled = np.maximum(each, 1)
            low = min(low, filled.min(initial=low))
            axes.hist(
                filled, edges, histtype="step", label=split, lw=1.5, log=True,
                color=COLORS[index % len(COLORS)],
            )  # fmt: skip
        axes.set(xlabel=f"{what} in a document", ylabel="documents")
        log_ticks(axes.xaxis, [max(1, low), largest])
        axes.legend(frameon=False, fontsize=8)
    return png(figure)


def kinds(found: dict[str, Any]) -> bytes | None:
    """Findings of each kind, copies included; None if there are none."""
    bars = {
        "exact duplicate": found["exact_duplicates"],
        "near duplicate": found["near_duplicates"],
        **{kind: each["findings"] for kind, each in found["kinds"].items()},
    }
    largest = sorted(((n, kind) for kind, n in bars.items() if n), reverse=True)[
        :MOST_KINDS
    ]
    if not largest:
        return None
    nums, names = zip(*largest, strict=True)
    figure, axes = pyplot.subplots(
        figsize=(WIDTH, 0.9 + 0.25 * len(names)), layout="constrained"
    )
    drawn = axes.barh(range(len(names)), nums, height=0.7, color=COLORS[0])
    axes.bar_label(drawn, [f"{n:,}" for n in nums], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set(xlabel="findings", xlim=(0, 1.1 * max(nums)))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    plain_ticks(axes.xaxis)
    return png(figure)


def shards(found: dict[str, Any]) -> bytes | None:
    """Tokens of each shard, in colours of the kinds of documents; None for one shard."""
    dealt = found["skew"]
    num = len(next(iter(dealt.values()))["tokens"])
    if not 1 < num <= MOST_SHARDS:
        return None
    figure, every = pyplot.subplots(
        2, -(-len(dealt) // 2), figsize=(WIDTH, 5.4), sharey=True, layout="constrained"
    )
    for axes, (name, each) in zip(every.flat, dealt.items(), strict=True):
        tokens, documents = np.array(each["tokens"]), np.array(each["documents"])
        bottom = np.zeros(num)
        for index, (kind, counts) in enumerate(each["kinds"].items()):
            # The share of a kind among the documents, on the height of the tokens.
            height = tokens * np.array(counts) / np.maximum(documents, 1)
            axes.bar(
                range(num), height, bottom=bottom, width=0.85,
                color=COLORS[index % len(COLORS)], label=kind or "no kind",
            )  # fmt: skip
            bottom += height
        multiple = each["token_skew"]["multiple"]
        times = "" if multiple is None else f": {multiple:.3g} x chance"
        axes.axhline(tokens.mean(), color="#555555", lw=1, ls="--")
        axes.set(title=f"by {name}{times}", xlabel="shard")
        axes.title.set_fontsize(10)
        plain_ticks(axes.yaxis)
    every[0, 0].set_ylabel("tokens")
    handles, labels = every[0, 0].get_legend_handles_labels()
    figure.legend(
        handles[:MOST_KINDS], [label[:40] for label in labels[:MOST_KINDS]], ncols=6,
        loc="outside lower left", frameon=False, fontsize=8,
    )  # fmt: skip
    return png(figure)
