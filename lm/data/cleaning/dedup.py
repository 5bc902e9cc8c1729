"""Exact deduplication of documents."""

import hashlib
from collections.abc import Iterable, Iterator


def deduplicate(documents: Iterable[str], seen: set[bytes]) -> Iterator[str]:
    """Yield each document that `seen` does not hold, and add it.

    Training documents first, then validation with the same set: no text is in both.
    """
    for text in documents:
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        if digest not in seen:
            seen.add(digest)
            yield text
