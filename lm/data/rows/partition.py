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
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lm.data.arrays import empty

NUM_FEATURES = 256  # F, buckets that words are hashed into
MAX_WORDS = 20_000  # of a document that its features count
KINDS = ("code", "numbers", "prose")
FITTED = 20_000  # documents that k-means is fitted on, at most
CHUNK = 4096  # documents whose distances are found at once
DIGESTS = 1 << 64  # a digest is below it
DIGITS, SIGNS = 0.2, 0.1  # shares of the characters that tell a kind


class Sketch(NamedTuple):
    """What a partition knows of a document."""

    digest: int  # 64-bit hash of the text
    size: int  # bytes
    key: str
    kind: str
    features_F: np.ndarray | None = None  # float16; only `kmeans` needs them


class Sketches(NamedTuple):
    """The sketches of n documents, in less memory."""

    digests_n: np.ndarray  # uint64
    sizes_n: np.ndarray  # int64
    keys: list[str]
    kinds: list[str]
    features_nF: np.ndarray | None  # float16


Policy = Callable[[Sketches, int], np.ndarray]  # (sketches, N) -> distances [n, N]


def sketch(text: str, key: str, policy: str) -> Sketch:
    raw = text.encode(errors="surrogatepass")
    digest = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big")
    features = word_features(text) if policy == "kmeans" else None
    return Sketch(digest, len(raw), key, kind_of(text), features)


def gathered(sketches: Iterable[Sketch], num: int) -> Sketches:
    """Go once through the sketches of `num` documents."""
    digests_n, sizes_n = np.zeros(num, np.uint64), np.zeros(num, np.int64)
    keys, kinds, features_nF = [], [], None
    for place, each in enumerate(sketches):
        digests_n[place], sizes_n[place] = each.digest, each.size
        keys.append(sys.intern(each.key))
        kinds.append(sys.intern(each.kind))
        if each.features_F is not None:
            if features_nF is None:
                features_nF = empty(num, NUM_FEATURES, np.float16)
            features_nF[place] = each.features_F
    return Sketches(digests_n, sizes_n, keys, kinds, features_nF)


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


def round_robin(sketches: Sketches, num_shards: int) -> np.ndarray:
    return around(np.arange(len(sketches.keys)) % num_shards, num_shards)


def by_hash(sketches: Sketches, num_shards: int) -> np.ndarray:
    home_n = (sketches.digests_n % np.uint64(num_shards)).astype(np.int64)
    return around(home_n, num_shards)


def by_range(sketches: Sketches, num_shards: int) -> np.ndarray:
    before = np.concatenate([[0], np.cumsum(sketches.sizes_n)])
    home_n = before[:-1] * num_shards // max(int(before[-1]), 1)
    return around(np.minimum(home_n, num_shards - 1), num_shards)


def by_group(sketches: Sketches, groups: Sequence[Hashable], num_shards: int) -> np.ndarray:
    """Keep groups whole: the largest goes first, to the shard that has the least."""
    sizes: Counter = Counter()
    for group, size in zip(groups, sketches.sizes_n.tolist(), strict=True):
        sizes[group] += size
    loads, chosen = [0] * num_shards, {}
    for group, size in sizes.most_common():
        chosen[group] = loads.index(min(loads))
        loads[chosen[group]] += size
    return around(np.array([chosen[group] for group in groups]), num_shards)


def by_key(sketches: Sketches, num_shards: int) -> np.ndarray:
    return by_group(sketches, sketches.keys, num_shards)


def by_kind_and_length(sketches: Sketches, num_shards: int) -> np.ndarray:
    """Make at least N cells: each kind has as many bands of length as that takes."""
    kinds, sizes_n = sketches.kinds, sketches.sizes_n
    bands = -(-num_shards // len(set(kinds)))
    ends = np.quantile(sizes_n, np.arange(1, bands) / bands)
    bands_n = np.searchsorted(ends, sizes_n, side="right").tolist()
    return by_group(sketches, list(zip(kinds, bands_n, strict=True)), num_shards)


def by_words(sketches: Sketches, num_shards: int) -> np.ndarray:
    # Imported where used: it takes a second, and most runs have no use for it.
    from sklearn.cluster import MiniBatchKMeans

    features_nF = sketches.features_nF
    num = len(features_nF)
    clusters = min(num_shards, num)
    means = MiniBatchKMeans(clusters, random_state=0, n_init=3, batch_size=4096)
    means.fit(features_nF[:: -(-num // FITTED)].astype(np.float64))
    distances_nN = np.full((num, num_shards), np.inf)
    for start in range(0, num, CHUNK):
        some = features_nF[start : start + CHUNK].astype(np.float64)
        # Rounded, so that the order of a sum on another machine moves no document.
        found = np.round(means.transform(some), 6)
        distances_nN[start : start + CHUNK, :clusters] = found
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
    sketches: Sketches,
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
    num = len(sketches.keys)
    if num < num_shards:
        raise ValueError(
            f"data.shards is {num_shards}, but there are {num} training "
            "documents; give fewer shards"
        )
    keys = sorted(set(sketches.keys))
    if policy == "dictionary" and len(keys) < num_shards:
        raise ValueError(
            f"data.partition=dictionary has {len(keys)} keys ({', '.join(keys[:5])}) for "
            f"data.shards {num_shards}; give fewer shards, another partition, or a source "
            "with more folders"
        )
    distances_nN = PARTITIONS[policy](sketches, num_shards)
    most = shuffled_share * DIGESTS
    shuffled_n = np.array([x < most for x in sketches.digests_n.tolist()], bool)
    distances_nN[shuffled_n] = by_hash(sketches, num_shards)[shuffled_n]
    if sizes == "natural":
        chosen_n = distances_nN.argmin(1)
    else:
        chosen_n = nearest_with_room(distances_nN, sketches.sizes_n.tolist())
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
