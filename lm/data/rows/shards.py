"""Rows of a split in shards, a file each, and inside a shard by strata.

Documents are dealt to shards and strata before they are packed, so that a row holds text of
one shard and one stratum. The rows of a stratum lie together, the first stratum first.
"""

import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer

from lm.data.rows.joined import Joined
from lm.data.rows.packing import Row
from lm.data.rows.partition import Sketch, assign, gathered, kind_of, sketch
from lm.data.rows.store import Rows, read_rows, write_rows
from lm.data.rows.weights import effective_size
from lm.data.sources.corpus import Document

# (tokenizer, split) -> the rows of each shard, of each stratum
ShardRows = Callable[[Tokenizer, str], list[list[Iterable[Row]]]]
STRATA = {
    "key": lambda document: document.key,
    "kind": lambda document: kind_of(document.text),
}


def dealt(
    documents: Sequence[Document],
    shards: int,
    partition: str,
    sizes: str,
    strata: str,
    shuffled_share: float = 0.0,
) -> tuple[list[list[list[int]]], list[str]]:
    """Return the numbers of the documents of each shard and stratum, and the strata.

    ValueError if a shard would be empty.
    """
    if shards == 1 and strata == "none":
        return [[list(range(len(documents)))]], [""]
    names: list[str] = []

    def sketches() -> Iterator[Sketch]:
        for document in documents:
            yield sketch(document.text, document.key, partition)
            names.append(STRATA[strata](document) if strata in STRATA else "")

    found = gathered(sketches(), len(documents))
    chosen: Sequence[int] = [0] * len(names)
    if shards > 1:
        chosen = assign(found, partition, shards, sizes, shuffled_share)
    order = sorted(set(names))
    parts: list[list[list[int]]] = [[[] for _ in order] for _ in range(shards)]
    for number, (shard, name) in enumerate(zip(chosen, names, strict=True)):
        parts[shard][order.index(name)].append(number)
    return parts, order


def write_shards(
    shards: Sequence[Sequence[Iterable[Row]]],
    folder: pathlib.Path,
    split: str,
    meta: dict,
) -> dict:
    """Write the rows of each shard and stratum; return what meta.json says of them."""
    made = []
    for number, strata in enumerate(shards):
        counts = [0] * len(strata)
        name = shard_name(split, number, len(shards))
        told = write_rows(counted(strata, counts), folder, name, meta)
        if not told["targets"] and len(shards) > 1:
            raise ValueError(
                f"shard {number} of data.shards {len(shards)} has too little text for a "
                f"row of data.seq_len {meta['row_len'] - 1}; give fewer shards"
            )
        num_bytes = sum(file.stat().st_size for file in folder.glob(f"{name}.*"))
        made.append(told | {"strata": counts, "bytes": num_bytes})
    return made[0] if len(made) == 1 else summed(made, meta["row_len"]) | {"shards": made}


def shard_name(split: str, number: int, num_shards: int) -> str:
    return split if num_shards == 1 else f"{split}-{number}"


def counted(strata: Sequence[Iterable[Row]], counts: list[int]) -> Iterator[Row]:
    for stratum, rows in enumerate(strata):
        for row in rows:
            counts[stratum] += 1
            yield row


def summed(made: list[dict], row_len: int) -> dict:
    """Return what is true of all shards together."""
    rows, targets = (sum(each[name] for each in made) for name in ("rows", "targets"))
    told = {
        "rows": rows,
        "targets": targets,
        "padding": 1 - targets / (rows * (row_len - 1)),
    }
    if not any("weight" in each for each in made):
        return told
    weights = [each.get("weight", each["targets"]) for each in made]
    squares = [
        weight**2 / (each.get("effective_targets", each["targets"]) or 1)
        for weight, each in zip(weights, made, strict=True)
    ]
    return told | {
        "weight": sum(weights),
        "effective_targets": effective_size(sum(weights), sum(squares)),
        "fractional_weights": any(each.get("fractional_weights") for each in made),
    }


def read_shards(folder: pathlib.Path, split: str, meta: dict) -> Rows:
    """Return the rows of all shards; a file is opened when it is first read."""
    shards = meta[split].get("shards")
    told = {
        # Held-out rows have no strata.
        "strata": tuple(meta.get("strata", ())) if split == "train" else (),
        "sources": tuple(map(tuple, meta.get("sources", {}).get(split, ()))),
    }
    if shards is None:
        parts = (tuple(meta[split]["strata"]),)
        return read_rows(folder, split, meta)._replace(parts=parts, **told)

    @functools.cache
    def shard(number: int) -> Rows:
        name = shard_name(split, number, len(shards))
        return read_rows(folder, name, meta | {name: shards[number]})

    def weights(number: int) -> np.ndarray:
        found = shard(number)
        if found.weights is None:
            return np.broadcast_to(np.float32(1), found.tokens.shape)
        return found.weights

    sizes, numbers = [each["rows"] for each in shards], range(len(shards))
    joined = functools.partial(Joined, sizes=sizes, width=meta["row_len"])
    return Rows(
        joined([lambda n=n: shard(n).tokens for n in numbers]),
        joined([lambda n=n: shard(n).segments for n in numbers]),
        weights=(
            joined([functools.partial(weights, n) for n in numbers])
            if "weight" in meta[split]
            else None
        ),
        parts=tuple(tuple(each["strata"]) for each in shards),
        **told,
    )


def shards_of(process: int, num_processes: int, num_shards: int) -> range:
    """Return the shards of which a process reads rows.

    Place p of a batch of B rows belongs to shard p N // B, and each process has as many
    places, which lie together.
    """
    first = process * num_shards // num_processes
    return range(first, -(-(process + 1) * num_shards // num_processes))
