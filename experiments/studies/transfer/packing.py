"""Lossless compression of arrays: the bytes of equal weight together, then zstd.

Of float32 numbers of a similar size, the first bytes (sign and exponent) are alike and the
others are not. Shuffled, the alike ones lie together, which zstd's matches and codes need.
Blosc calls the same thing a byte shuffle (Alted 2010).
"""

import numpy as np


def shuffled(data: bytes, width: int) -> bytes:
    """Put the first bytes of all numbers of `width` bytes first, and so on.

    ValueError if the bytes are not a whole number of these.
    """
    if width < 1 or len(data) % width:
        raise ValueError(f"{len(data)} bytes are not numbers of {width} bytes each")
    return np.frombuffer(data, np.uint8).reshape(-1, width).T.tobytes()


def unshuffled(data: bytes, width: int) -> bytes:
    """Undo `shuffled`."""
    if width < 1 or len(data) % width:
        raise ValueError(f"{len(data)} bytes are not numbers of {width} bytes each")
    return np.frombuffer(data, np.uint8).reshape(width, -1).T.tobytes()
