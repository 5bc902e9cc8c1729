"""Hardware as data: what a device computes, holds and sends, and how devices are joined.

`parse` reads names such as tpu-v5e:4x8 (a torus of 4 x 8 chips), h100:8x2 (2 hosts of 8
GPUs) and this:2 (2 devices such as experiments.calibrate has measured here).

Figures are those of data sheets: bytes and FLOP/s in powers of ten, bandwidth in bytes/s in
one direction. `efficiency` is the share of the FLOP/s that large products reach.

Sources:
  TPU v5e, v5p, v6e  cloud.google.com/tpu/docs/v5e, v5p, v6e; link by link in "How to Scale
                     Your Model" (Austin et al. 2025), chapter 2. Memory is what the
                     compiler lets a program have (experiments/costs/machine.py).
                     Between slices a host of 8 chips has 2 x 100 Gb/s, 3.1 GB/s a chip;
                     0.8 GB/s of a v5e chip is fitted, as is the efficiency.
  A100, H100, H200   NVIDIA's data sheets of the SXM modules with 80, 80 and 141 GB:
                     NVLink has 600 or 900 GB/s in both directions together. Between hosts:
                     a 200 or 400 Gb/s InfiniBand port for each GPU, as in DGX A100, H100.
  host               PCIe: the same book for TPUs, 16 lanes of PCIe 4 and 5 for GPUs.
  latency            of one send: 1 us on a TPU's links (the same book), 2.5 us over
                     NVLink, 5 us over InfiniBand, 30 us between slices: assumed, not
                     measured here.
  efficiency         of the v5e: fitted to four of MaxText's published runs
                     (experiments/studies/plan_accuracy/maxtext.py), with the bandwidth
                     between slices; taken for the others too.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

GIB = 1 << 30
EFFICIENCY = 0.90


class Link(NamedTuple):
    bandwidth: float  # bytes/s that a device sends, in one direction
    latency: float  # seconds of a send


class Machine(NamedTuple):
    """One kind of device."""

    name: str
    # FLOP/s by type of the operands; of products whose smallest dim is at least the given
    # number. The entries are sorted by it; smaller products have the rate of the first.
    flops: dict[str, tuple[tuple[float, float], ...]]
    memory: float  # bytes that a program may have
    memory_bandwidth: float  # bytes/s
    inner: Link  # of one link of a torus, or of a device inside a host
    outer: Link | None  # between hosts or slices; None: there is only one
    host: float  # bytes/s that a device sends to its host's memory, in one direction
    torus: int = 0  # dims of the torus; 0: the devices of a host reach each other directly
    ring: int = 0  # torus: a dim of this size or more is closed to a ring
    overlaps: bool = True  # sends and computes at the same time
    efficiency: float = EFFICIENCY
    # Bytes of the compiled program, for each layer that it writes out; it lies in the
    # memory of a TPU. The mean over the cells of results/tpu.jsonl.
    program: float = 0.0
    # Measured by kind of collective, where that is known; it stands for all links.
    collectives: dict[str, Link] = {}
    # Part of a step's seconds -> how many times the roofline it takes, measured in steps.
    factors: dict[str, float] = {}
    overhead: float = 0.0  # seconds of a step, however small
    cache: float = 0.0  # bytes of a layer's activations that need not go through memory
    platform: str = "cpu"  # whose kernels and compiler it has, as JAX names it

    def rate(self, dtype: str, smallest: float) -> float:
        """Return the FLOP/s of a product whose smallest dim is given."""
        table = self.flops.get(dtype) or self.flops["float32"]
        fitting = [rate for size, rate in table if size <= smallest]
        return self.efficiency * (fitting[-1] if fitting else table[0][1])


class Hardware(NamedTuple):
    """Devices of one kind, joined."""

    machine: Machine
    # torus: its dims; else (devices of a host, hosts)
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def num_devices(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def name(self) -> str:
        slices = f"{self.slices}*" if self.slices > 1 else ""
        return f"{slices}{self.machine.name}:{'x'.join(map(str, self.shape))}"


def peak(*, half: float, single: float) -> dict[str, tuple[tuple[float, float], ...]]:
    rates = {"bfloat16": half, "float16": half, "float32": single}
    return {dtype: ((0.0, rate),) for dtype, rate in rates.items()}


def tpu(
    name: str,
    half: float,
    memory: float,
    bandwidth: float,
    link: float,
    outer: float = 25e9 / 8,
    host: float = 16e9,
    **more,
):
    # The MXU takes bfloat16. JAX's default precision rounds float32 operands to it.
    return Machine(
        f"tpu-{name}",
        peak(half=half, single=half),
        memory * GIB,
        bandwidth,
        Link(link, 1e-6),
        Link(outer, 30e-6),
        host,
        program=22e6,
        platform="tpu",
        **more,
    )


def gpu(
    name: str,
    half: float,
    single: float,
    memory: float,
    bandwidth: float,
    inner: float,
    outer: float,
    host: float,
):
    # A CUDA context and the libraries' own memory take about 1 GB.
    return Machine(
        name,
        peak(half=half, single=single),
        memory - 1e9,
        bandwidth,
        Link(inner, 2.5e-6),
        Link(outer, 5e-6),
        host,
        platform="gpu",
    )


MACHINES = {
    machine.name: machine
    for machine in (
        tpu("v5e", 197e12, 15.75, 819e9, 45e9, 0.8e9, torus=2, ring=16),
        tpu("v5p", 459e12, 95.74, 2765e9, 90e9, torus=3, ring=4),
        tpu("v6e", 918e12, 31.25, 1640e9, 90e9, host=32e9, torus=2, ring=16),
        gpu("a100", 312e12, 156e12, 80e9, 2039e9, 300e9, 25e9, 31.5e9),
        gpu("h100", 989e12, 494e12, 80e9, 3350e9, 450e9, 50e9, 63e9),
        gpu("h200", 989e12, 494e12, 141e9, 4800e9, 450e9, 50e9, 63e9),
    )
}


def parse(text: str, measured: Machine | None = None) -> Hardware:
    """Read NAME:AxB; `measured` is what `this` means. ValueError names what is known."""
    count, star, rest = text.rpartition("*")
    name, _, sizes = rest.partition(":")
    known = MACHINES | ({"this": measured} if measured else {})
    if name not in known:
        raise ValueError(
            f"--hardware={text}: no machine is called {name!r}; known are "
            f"{', '.join(MACHINES)}, this, or a file that experiments.calibrate has written"
        )
    machine, parts = known[name], sizes.split("x")
    numbers = [*parts, count if star else "1"]
    if not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise ValueError(
            f"--hardware={text}: expected NAME:SIZES, as in tpu-v5e:4x8 (a torus), "
            "h100:8x2 (2 hosts of 8), 2*tpu-v5e:16x16 (2 slices) or this:2"
        )
    *shape, slices = map(int, numbers)
    most = machine.torus or 2
    if len(shape) > most:
        raise ValueError(
            f"--hardware={text} has {len(shape)} sizes, and {name} is joined in {most} "
            f"dims; give {most} sizes at most"
        )
    if slices > 1 and not machine.torus:
        raise ValueError(f"--hardware={text}: only TPUs have slices; give hosts, as in 8x2")
    return Hardware(machine, tuple(shape), slices)


def axis_links(hardware: Hardware, degrees: Mapping[str, int]) -> dict[str, Link]:
    """Return, for each axis of a mesh, what a device sends over it in a ring.

    The last axis lies along the fastest links. A mesh axis that is one or several whole
    dims of a torus has the links of all of them, in both directions where a dim is closed
    to a ring. An axis that crosses hosts or slices has the slowest of its links.
    """
    machine, found = hardware.machine, {}
    left = list(hardware.shape if machine.torus else hardware.shape[:1])
    for axis, degree in reversed(degrees.items()):
        room = math.prod(left)
        if degree == 1:
            found[axis] = machine.inner
            continue
        if degree > room or room % degree:
            found[axis] = machine.outer or machine.inner
            left = [1]
            continue
        found[axis], left = taken(machine, left, degree)
    return found


def taken(machine: Machine, left: list[int], degree: int) -> tuple[Link, list[int]]:
    """Give an axis of a mesh its links inside a slice or host, and return the rest."""
    inner, (bandwidth, latency) = machine.inner, machine.inner
    if not machine.torus:
        return inner, [left[0] // degree]
    whole, rest, need = 0.0, list(left), degree
    for size in sorted(left, reverse=True):
        if size > 1 and need % size == 0:
            need //= size
            rest.remove(size)
            whole += bandwidth * (2 if size >= machine.ring else 1)
    if need > 1:  # a part of one dim, which is an open line
        part = next((size for size in rest if size % need == 0), None)
        if part is None:
            return inner, [math.prod(left) // degree]
        rest[rest.index(part)] = part // need
        whole = max(whole, bandwidth)
    return Link(whole, latency), rest or [1]


def slowest(hardware: Hardware, degrees: Mapping[str, int], axes: tuple[str, ...]) -> Link:
    """Return the link of a collective over several axes: the slowest of theirs."""
    links = axis_links(hardware, degrees)
    used = [links[axis] for axis in axes if degrees[axis] > 1]
    return min(used, default=hardware.machine.inner)
