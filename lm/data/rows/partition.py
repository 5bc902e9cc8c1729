"""Partitions: which shard of the training rows a document goes to.

A policy looks at all documents at once and says how far each is from each shard. A document
goes to the nearest shard (`natural`), or to the nearest one that still has room (`equal`).

  round_robin  document i goes to shard i mod N
  hash         a hash of the text decides
  range        documents in their order, cut into N runs of about equal size
  dictionary   documents with the same key (folder, dataset) stay together
  grid         documents of the same kind and of about the same length stay together
  kmeans       documents with similar words stay together (Sculley 2010, mini-batch k-means)

Letters: n documents, N shards, F features.
"""

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

NUM_FEATURES = 256  # F, buckets that words are hashed into
MAX_WORDS = 20_000  # of a document that its features count
DIGESTS = 1 << 64  # a digest is below it
DIGITS, SIGNS = 0.2, 0.1  # shares of the characters that tell a kind


class Sketch(NamedTuple):
    """What a partition knows of a document."""

    digest: int  # 64-bit hash of the text
    size: int  # bytes
    key: str
    kind: str
    features_F: np.ndarray | None = None  # float16; only `kmeans` needs them


Policy = Callable[[Sequence[Sketch], int], np.ndarray]  # (sketches, N) -> distances [n, N]


def sketch(text: str, key: str, policy: str) -> Sketch:
    raw = text.encode(errors="surrogatepass")
    digest = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big")
    features = word_features(text) if policy == "kmeans" else None
    return Sketch(digest, len(raw), key, kind_of(text), features)


def kind_of(text: str) -> str:
    """Return "numbers", "code" or "prose", by the shares of digits and of signs."""
    marks = [c for c in text[:MAX_WORDS] if not c.isspace()]
    total = max(len(marks), 1)
    digits = sum(map(str.isdigit, marks)) / total
    signs = sum(not c.isalnum() for c in marks) / total
    if digits > DIGITS:
        return "numbers"
    return "code" if signs > SIGNS else "prose"


def word_features(text: str) -> np.ndarray:
    """Return float16[F], the logarithms of hashed word counts, of length 1."""
    counts_F = np.zeros(NUM_FEATURES)
    for word, count in Counter(text.split()[:MAX_WORDS]).items():
        raw = word.encode(errors="surrogatepass")
        counts_F[zlib.crc32(raw) % NUM_FEATURES] += count
    logs_F = np.log1p(counts_F)
    return (logs_F / max(float(np.linalg.norm(logs_F)), 1e-9)).astype(np.float16)


def around(home_n: np.ndarray, num_shards: int) -> np.ndarray:
    """Return distances: a document's home is nearest, then the shards after it in turn."""
    return (np.arange(num_shards) - home_n[:, None]) % num_shards


def round_robin(sketches: Sequence[Sketch], num_shards: int) -> np.ndarray:
    return around(np.arange(len(sketches)) % num_shards, num_shards)


def by_hash(sketches: Sequence[Sketch], num_shards: int) -> np.ndarray:
    return around(np.array([s.digest % num_shards for s in sketches]), num_shards)


def by_range(sketches: Sequence[Sketch], num_shards: int) -> np.ndarray:
    before = np.cumsum([0, *(s.size for s in sketches)])
    home_n = before[:-1] * num_shards // max(int(before[-1]), 1)
    return around(np.minimum(home_n, num_shards - 1), num_shards)


def by_group(
    sketches: Sequence[Sketch], groups: Sequence[Hashable], num_shards: int
) -> np.ndarray:
    """Keep groups whole: the largest goes first, to the shard that has the least."""
    sizes: Counter = Counter()
    for each, group in zip(sketches, groups, strict=True):
        sizes[group] += each.size
    loads, chosen = [0] * num_shards, {}
    for group, size in sizes.most_common():
        chosen[group] = loads.index(min(loads))
        loads[chosen[group]] += size
    return around(np.array([chosen[group] for group in groups]), num_shards)


def by_key(sketches: Sequence[Sketch], num_shards: int) -> np.ndarray:
    return by_group(sketches, [s.key for s in sketches], num_shards)


def by_kind_and_length(sketches: Sequence[Sketch], num_shards: int) -> np.ndarray:
    """Make at least N cells: each kind has as many bands of length as that takes."""
    kinds = [s.kind for s in sketches]
    bands = -(-num_shards // len(set(kinds)))
    sizes_n = np.array([s.size for s in sketches])
    ends = np.quantile(sizes_n, np.arange(1, bands) / bands)
    bands_n = np.searchsorted(ends, sizes_n, side="right").tolist()
    return by_group(sketches, list(zip(kinds, bands_n, strict=True)), num_shards)


def by_words(sketches: Sequence[Sketch], num_shards: int) -> np.ndarray:
    # Imported where used: it takes a second, and most runs have no use for it.
    from sklearn.cluster import MiniBatchKMeans

    features_nF = np.stack([s.features_F for s in sketches]).astype(np.float64)
    clusters = min(num_shards, len(sketches))
    means = MiniBatchKMeans(clusters, random_state=0, n_init=3, batch_size=4096)
    distances_nN = np.full((len(sketches), num_shards), np.inf)
    # Rounded, so that the order of a sum on another machine moves no document.
    distances_nN[:, :clusters] = np.round(means.fit(features_nF).transform(features_nF), 6)
    return distances_nN


PARTITIONS: dict[str, Policy] = {
    "round_robin": round_robin,
    "hash": by_hash,
    "range": by_range,
    "dictionary": by_key,
    "grid": by_kind_and_length,
    "kmeans": by_words,
}


# With these, shards are alike but for chance.
ALIKE = ("round_robin", "hash")


def assign(
    sketches: Sequence[Sketch],
    policy: str,
    num_shards: int,
    sizes: str,
    shuffled_share: float = 0.0,
) -> np.ndarray:
    """Return int32[n], the shard of each document; ValueError if a shard would be empty.

    `sizes` is "natural", or "equal": then a shard takes documents, in their order, until it
    has its N-th part of the bytes, and the next nearest shard takes what comes after. A
    share of the documents goes by the hash whatever the policy is (Zhao et al. 2018,
    Federated Learning with Non-IID Data, 4).
    """
    if len(sketches) < num_shards:
        raise ValueError(
            f"data.shards is {num_shards}, but there are {len(sketches)} training "
            "documents; give fewer shards"
        )
    keys = sorted({s.key for s in sketches})
    if policy == "dictionary" and len(keys) < num_shards:
        raise ValueError(
            f"data.partition=dictionary has {len(keys)} keys ({', '.join(keys[:5])}) for "
            f"data.shards {num_shards}; give fewer shards, another partition, or a source "
            "with more folders"
        )
    distances_nN = PARTITIONS[policy](sketches, num_shards)
    shuffled_n = np.array([s.digest < shuffled_share * DIGESTS for s in sketches])
    distances_nN[shuffled_n] = by_hash(sketches, num_shards)[shuffled_n]
    if sizes == "natural":
        chosen_n = distances_nN.argmin(1)
    else:
        chosen_n = nearest_with_room(distances_nN, [s.size for s in sketches])
    if empty := sorted(set(range(num_shards)) - set(chosen_n.tolist())):
        raise ValueError(
            f"data.partition={policy} leaves {len(empty)} of data.shards {num_shards} "
            f"without a document (number {empty[0]}); give fewer shards, or "
            "data.shard_sizes=equal"
        )
    return chosen_n.astype(np.int32)


def nearest_with_room(distances_nN: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Give each document in turn to the nearest shard that has not got its share yet."""
    num_shards = distances_nN.shape[1]
    share, loads = sum(sizes) / num_shards, np.zeros(num_shards)
    order_nN = distances_nN.argsort(1, kind="stable")
    chosen_n = np.empty(len(sizes), np.int32)
    for i, size in enumerate(sizes):
        # One shard has room, for all loads together are less than the whole.
        chosen_n[i] = next((s for s in order_nN[i] if loads[s] < share), order_nN[i, 0])
        loads[chosen_n[i]] += size
    return chosen_n
