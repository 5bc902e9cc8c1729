"""The seconds of a step, part by part: products, memory, collectives, bubbles.

A product takes the longer of its FLOPs and its bytes (a roofline, Williams et al. 2009). A
collective takes a latency for each of its sends, one after the other, and its bytes over
the bandwidth (alpha-beta: Thakur et al. 2005). A collective that the program may run beside
a layer's products costs what is longer than these.
"""

from collections.abc import Iterable
from typing import NamedTuple

from parallel.cost.machine import Link, Machine


class Product(NamedTuple):
    """A product of matrices in the forward pass of one row."""

    flops: float
    smallest: float  # the smallest of its three dims that do not grow with the rows
    moved: float  # elements of the operands and the result that grow with the rows
    fixed: float  # elements of the weights
    times: float = 1.0  # how often it runs


class Collective(NamedTuple):
    """What one device sends in a step for one purpose."""

    name: str
    axes: tuple[str, ...]
    sent_bytes: float
    count: float  # collectives in a step
    sends: float  # sends of one collective that follow each other
    kind: str = "all-reduce"
    hides: bool = False  # may run beside products


def product_seconds(
    products: Iterable[Product], rows: float, tensor: int, machine: Machine, dtype: str
) -> float:
    """Return the seconds of the forward pass of these products, for rows of one device."""
    itemsize, total = 4 if dtype == "float32" else 2, 0.0
    for one in products:
        compute = one.flops * rows / tensor / machine.rate(dtype, one.smallest / tensor)
        elements = (one.moved * rows + one.fixed) / tensor
        memory = itemsize * elements / machine.memory_bandwidth
        total += one.times * max(compute, memory)
    return total


def product_flops(products: Iterable[Product]) -> float:
    return sum(one.flops * one.times for one in products)


def collective_seconds(collective: Collective, link: Link) -> float:
    latency = collective.count * collective.sends * link.latency
    return latency + collective.sent_bytes / link.bandwidth


def sends(algorithm: str, degree: int) -> float:
    """Return how many sends of an all-reduce follow each other (Thakur et al. 2005, 4).

    Devices beyond a power of two send to the others first, and get the sums last.
    """
    n = degree
    log, rest = n.bit_length() - 1, n & (n - 1) > 0
    return {
        "psum": 2 * (n - 1),
        "ring": 2 * (n - 1),
        "p2p": 2 * (n - 1),
        "tree": log + 2 * rest,
        "halving_doubling": 2 * log + 2 * rest,
        "all_gather": n - 1,
        "all_to_all": 2 * (n - 1),
        "hierarchical": 2 * (n - 1),
    }[algorithm]
