"""Sizes and token counts of documents, and how unlike shards of them are.

Letters: N shards, V tokens of the vocabulary, K kinds of documents.
"""

import array
import collections
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from experiments.processes.files import without_nonfinite
from lm.data.cleaning.records import Records
from lm.data.config import DataConfig
from lm.data.rows.partition import PARTITIONS, gathered, sketch
from lm.data.rows.skew import imbalance, skew
from lm.data.sources.corpus import Document
from lm.data.tokenizer import encode_documents, train_tokenizer

SAMPLE_CHARACTERS = 2_000_000  # that a tokenizer is trained on
QUANTILES = (0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)
EXCERPT = 160  # characters


class Sizes(NamedTuple):
    """What is known of a split: a number for each document."""

    bytes: array.array
    tokens: array.array


class Survey(NamedTuple):
    splits: dict[str, Sizes]
    shards: dict[str, "Shards"]  # by each partition
    excerpts: dict[str, str]  # of the documents asked for, by name

    def all(self, what: str) -> np.ndarray:
        parts = [np.asarray(getattr(sizes, what)) for sizes in self.splits.values()]
        return np.concatenate(parts)

    def report(self) -> dict[str, Any]:
        return {
            "tokens": int(self.all("tokens").sum()),
            "splits": {
                split: {
                    "documents": len(sizes.bytes),
                    "bytes": sum(sizes.bytes),
                    "tokens": sum(sizes.tokens),
                }
                for split, sizes in self.splits.items()
            },
            "lengths": {what: quantiles(self.all(what)) for what in ("tokens", "bytes")},
            "skew": {name: each.report() for name, each in self.shards.items()},
        }


class Shards:
    """Counts of the documents that were dealt to N shards."""

    def __init__(self, num: int, vocab_size: int):
        self.documents_N = np.zeros(num, np.int64)
        self.tokens_NV = np.zeros((num, vocab_size), np.int64)
        self.kinds: list[collections.Counter] = [collections.Counter() for _ in range(num)]

    def add(self, shard: int, ids: np.ndarray, kind: str) -> None:
        self.documents_N[shard] += 1
        np.add.at(self.tokens_NV[shard], ids, 1)
        self.kinds[shard][kind] += 1

    def kinds_NK(self) -> tuple[list[str], np.ndarray]:
        """Return the names of the kinds, the commonest first, and their counts."""
        total = sum(self.kinds, collections.Counter())
        names = [name for name, _ in total.most_common()]
        return names, np.array([[each[name] for name in names] for each in self.kinds])

    def report(self) -> dict:
        tokens_N = self.tokens_NV.sum(1)
        names, kinds_NK = self.kinds_NK()
        # Without chance there is no multiple of it: JSON has null for it.
        return without_nonfinite(
            {
                "documents": self.documents_N.tolist(),
                "tokens": tokens_N.tolist(),
                "token_skew": skew(self.tokens_NV)._asdict(),
                "kind_skew": skew(kinds_NK)._asdict(),
                "kinds": dict(zip(names, kinds_NK.T.tolist(), strict=True)),
                "imbalance": imbalance(tokens_N)._asdict(),
            }
        )


def sample_tokenizer(config: DataConfig, documents: Records) -> Tokenizer:
    """Train the config's tokenizer on documents taken at random."""

    def texts() -> Iterator[str]:
        left = SAMPLE_CHARACTERS
        for place in np.random.default_rng(0).permutation(len(documents)):
            text = documents[int(place)].text[:left]
            left -= len(text)
            yield text
            if left <= 0:
                return

    return train_tokenizer(config.tokenizer, texts(), config.vocab_size)


def survey(
    documents: Records,
    splits: dict[str, int],
    tokenizer: Tokenizer,
    num_shards: int,
    wanted: Iterable[str],
) -> Survey:
    """Go once through the documents; `wanted` names those whose beginnings are kept."""
    vocab_size, wanted = tokenizer.get_vocab_size(), set(wanted)
    found = Survey(
        {split: Sizes(array.array("q"), array.array("q")) for split in splits},
        {name: Shards(num_shards, vocab_size) for name in PARTITIONS},
        {},
    )
    homes, kinds = dealt(documents, num_shards)
    one, other = streams(documents)
    encoded = encode_documents(tokenizer, (encodable(document.text) for document in one))
    names = (split for split, num in splits.items() for _ in range(num))
    every = zip(names, other, encoded, strict=True)
    every = tqdm(every, "count", len(documents), unit=" documents")
    for place, (split, document, ids) in enumerate(every):
        inside = ids[1:-1]  # without the marks of its beginning and its end
        raw = document.text.encode(errors="surrogatepass")
        found.splits[split].bytes.append(len(raw))
        found.splits[split].tokens.append(len(inside))
        for name, shard_of in homes.items():
            found.shards[name].add(int(shard_of[place]), inside, kinds[place])
        if document.name in wanted:
            found.excerpts[document.name] = document.text[:EXCERPT]
    return found


def dealt(documents: Records, num: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the shard of each document by each partition, and the documents' kinds."""
    every = tqdm(documents, "deal", len(documents), unit=" documents")
    sketches = (sketch(each.text, each.key, "kmeans") for each in every)
    found = gathered(sketches, len(documents))
    homes = {
        name: deal(found, num).argmin(1).astype(np.int32)
        for name, deal in PARTITIONS.items()
    }
    return homes, found.kinds


def streams(documents: Records) -> tuple[Iterator[Document], Iterator[Document]]:
    """Read the documents twice: encoding runs ahead of who takes the tokens."""
    again = Records(documents.file)
    one, other = ((each[i] for i in range(len(each))) for each in (documents, again))
    return one, other


def encodable(text: str) -> str:
    """Return the text with a question mark for each lone surrogate."""
    return text.encode(errors="replace").decode()


def quantiles(sizes: np.ndarray) -> dict[str, int]:
    """Return the QUANTILES, each a size that occurs."""
    values = np.quantile(sizes, QUANTILES, method="inverted_cdf")
    return {f"{q:g}": int(value) for q, value in zip(QUANTILES, values, strict=True)}
