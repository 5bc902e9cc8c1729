"""What travels between the processes of a parameter server, with a CRC-32C of its arrays.

Ray's transports have TCP's checksum alone, which misses some damage, and none in memory.
What is damaged is not taken: who opens it fails, and the pool begins that work again.
"""

from typing import Any, NamedTuple

import google_crc32c
import jax
import numpy as np

from experiments.run.survival.replicas import Damage


class Sealed(NamedTuple):
    value: Any  # a tree of arrays and numbers
    crc: int  # of the bytes of its leaves, in their order


def crc_of(tree: Any) -> int:
    crc = 0
    for leaf in jax.tree.leaves(tree):
        crc = google_crc32c.extend(crc, np.asarray(leaf).tobytes())
    return crc


def sealed(tree: Any) -> Sealed:
    return Sealed(tree, crc_of(tree))


def opened(given: Sealed, what: str) -> Any:
    """Return the tree; Damage, which names `what`, if it is not the one that was sealed."""
    found = crc_of(given.value)
    if found != given.crc:
        raise Damage(
            f"{what} is damaged: its CRC-32C is {found:#010x} and was {given.crc:#010x}. "
            "It is not taken; the same command goes back to the last checkpoint"
        )
    return given.value
