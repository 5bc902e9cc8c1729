"""Which texts are held out to evaluate on: a hash of the text decides."""

import hashlib
import math
from collections.abc import Iterable

PLACES = 1 << 32


def place(text: str) -> int:
    """Return the place of a text, 0 to PLACES - 1; equal texts have the same one."""
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def border(places: Iterable[int], share: float) -> int | None:
    """Return the place below which texts are held out; None if there is only one text.

    It is share * PLACES. Few texts may all lie on one side of that; then it moves to the
    nearest place that leaves a text on each side. Reads only as many places as it needs.
    """
    usual = math.ceil(share * PLACES)
    least, most = PLACES, -1
    for each in places:
        least, most = min(least, each), max(most, each)
        if least < usual <= most:
            return usual
    if least >= most:
        return None
    return least + 1 if least >= usual else most
