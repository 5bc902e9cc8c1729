"""Exact deduplication of documents."""

import hashlib
from collections.abc import Iterable, Iterator


def deduplicate(documents: Iterable[str], seen: set[bytes]) -> Iterator[str]:
    """Yield each document that `seen` does not hold yet, and add it to `seen`.

    Pass the training documents first, then the others with the same `seen`: so no text of
    the training split is in another split.
    """
    for text in documents:
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        if digest not in seen:
            seen.add(digest)
            yield text
