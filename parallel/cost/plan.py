"""Candidates for a run, each with its memory, its seconds and its bytes, best first.

Nothing here is compiled: a `Model` holds shapes and numbers, and all else is arithmetic.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from jax.sharding import AbstractMesh, Mesh

from parallel.config import ParallelConfig
from parallel.cost import memory
from parallel.cost.closed_forms import Cut, num_bytes
from parallel.cost.machine import Hardware, slowest
from parallel.cost.saved import Saved, activation_bytes
from parallel.cost.step_time import Product, collective_seconds, product_seconds
from parallel.cost.traffic import traffic
from parallel.mesh import batch_degree
from parallel.pipeline.schedules import ideal_bubble
from parallel.program import AXIS, FSDP, SLICE, STAGE, TENSOR, TensorDims
from parallel.strategies import STRATEGIES

# Of an activation: written and read forward; read backward, its gradient written and read.
PASSES = 5
LARGE = 12e6  # bytes of a layer's parameters, from which its program has one size
Degrees = dict[str, int]  # axis of the mesh -> degree, the slowest axis first


class Model(NamedTuple):
    """What must be known of a model and its batch."""

    params: Any  # shapes
    opt: Any  # shapes of the optimizer's state
    tensor_dims: TensorDims
    cut: Cut | None  # for all rows of a batch; None: it has no layers to cut
    rows: int  # of a batch
    seq_len: int
    compute: str  # type of products and activations
    # What a layer keeps under each policy of rematerialisation, the one without it first.
    # A model without layers has one list, of the whole model.
    saved: dict[str, list[Saved]]
    carry: float  # bytes of a token between layers
    wide: float  # elements of a token's widest array inside a layer
    gated: bool  # two arrays of that width are multiplied
    vocab_size: int
    loss_chunk: int  # positions whose logits exist at once
    layer: list[Product]  # of one layer, forward
    outer: list[Product]  # of all that is not in layers
    written: int = 1  # layers that the program writes out; 1: one, which runs in a loop
    norms: int = 1  # of the whole gradient, that a step takes

    @property
    def num_layers(self) -> int:
        return self.cut.num_layers if self.cut else 1

    @property
    def looped(self) -> bool:
        """Tell whether one program of a layer runs for all of them, in a loop."""
        return self.written < self.num_layers

    @property
    def layer_share(self) -> float:
        """The program of a layer as a share of that of a large layer."""
        layer = self.cut.layers / self.num_layers if self.cut else self.param_bytes
        return min(1.0, layer / LARGE)

    @property
    def param_bytes(self) -> float:
        return self.cut.outer + self.cut.layers if self.cut else num_bytes(self.params)


class Candidate(NamedTuple):
    strategy: str
    degrees: Degrees
    chunks: int  # of layers on each stage
    accumulation: int
    remat: str
    memory: dict[str, float]  # bytes of a device, by part
    time: dict[str, float]  # seconds of a step, by part; `hidden` is not part of the sum
    links: dict[str, str]  # part of `time` -> the axes that it crosses
    sent_bytes: float  # of a device, in a step
    collectives: float  # in a step
    limit: float  # bytes that a program may have on a device

    @property
    def seconds(self) -> float:
        return sum(value for name, value in self.time.items() if name != "hidden")

    @property
    def memory_bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.memory_bytes <= self.limit

    @property
    def bound(self) -> str:
        """What takes most of the seconds; for a collective, with its axes."""
        named = {name: value for name, value in self.time.items() if name != "hidden"}
        name = max(named, key=named.get)
        return f"{name} over {self.links[name]}" if name in self.links else name


def plan(
    model: Model,
    hardware: Hardware,
    config: ParallelConfig,
    strategies: Iterable[str],
    accumulation: int | None = None,
) -> list[Candidate]:
    """Return all candidates, those that fit before those that do not, the fastest first.

    `config` gives the exchange and the local steps. `accumulation` keeps the number of
    microbatches; None: powers of two are tried.
    """
    found = []
    for name in strategies:
        for degrees in splits(STRATEGIES[name].axes, hardware):
            if not suits(model, degrees):
                continue
            each = replace(config, strategy=name, **placed(degrees))
            mesh = AbstractMesh(tuple(degrees.values()), tuple(degrees))
            held = memory.state_bytes(model, each, mesh)
            updated = memory.update_bytes(model, each, mesh, held["optimizer"])
            for number in microbatches(model.rows // parts(degrees), accumulation):
                one = replace(each, accumulation=number)
                if cuts(model, one, mesh) and can_exchange(one, mesh):
                    found += weigh(model, hardware, one, mesh, held, updated)
    return sorted(found, key=order)


def candidates(
    model: Model,
    hardware: Hardware,
    config: ParallelConfig,
    mesh: Mesh,
    remat: str,
) -> list[Candidate]:
    """Return the candidates of one strategy, mesh and policy: the numbers of microbatches.

    Powers of two, and the config's own number.
    """
    abstract = AbstractMesh(tuple(mesh.shape.values()), tuple(mesh.shape))
    held = memory.state_bytes(model, config, mesh)
    updated = memory.update_bytes(model, config, mesh, held["optimizer"])
    rows = model.rows // batch_degree(mesh)
    numbers = {*microbatches(rows, None), *microbatches(rows, config.accumulation)}
    # Without the others, one of which may keep as much and give its name.
    names = dict.fromkeys((next(iter(model.saved)), remat))
    model = model._replace(saved={name: model.saved[name] for name in names})
    found = []
    for number in sorted(numbers):
        one = replace(config, accumulation=number)
        if cuts(model, one, abstract) and can_exchange(one, abstract):
            found += weigh(model, hardware, one, abstract, held, updated)
    return [each for each in found if each.remat == remat]


def order(candidate: Candidate) -> tuple[float, ...]:
    """Among those that fit, the fastest first; among the others, the smallest.

    Seconds that are equal but for rounding are equal: then fewer bytes are sent, then there
    are fewer microbatches, then the strategy was named before.
    """
    seconds = float(f"{candidate.seconds:.6g}")
    rest = candidate.sent_bytes, candidate.accumulation
    if candidate.fits:
        return 0, seconds, *rest
    return 1, candidate.memory_bytes, seconds, *rest


def placed(degrees: Degrees) -> Degrees:
    return {axis: degrees.get(axis, 1) for axis in (SLICE, AXIS, FSDP, TENSOR, STAGE)}


def cuts(model: Model, config: ParallelConfig, mesh: AbstractMesh) -> bool:
    """Tell whether a pipeline can cut the layers and the microbatches so."""
    if STAGE not in mesh.shape:
        return True
    stages = mesh.shape[STAGE]
    parted = model.num_layers % (stages * config.num_chunks(mesh)) == 0
    return parted and not (config.row.interleaves and config.accumulation % stages)


def can_exchange(config: ParallelConfig, mesh: AbstractMesh) -> bool:
    """Tell whether the exchange suits the mesh and the microbatches."""
    if config.row.exchanges and config.row.synchronous:
        try:
            config.exchange.validate(config.exchanging(mesh), config.accumulation)
        except ValueError:
            return False
    return True


def splits(axes: tuple[str, ...], hardware: Hardware) -> Iterator[Degrees]:
    """Yield every way to share the devices out over the axes; each axis gets 2 or more.

    The axis of the replicas may have one. The axis of slices is the hardware's own.
    """
    if SLICE in axes and hardware.slices == 1:
        axes = tuple(axis for axis in axes if axis != SLICE)
    fixed = {SLICE: hardware.slices} if SLICE in axes else {}
    rest = hardware.num_devices // math.prod(fixed.values())
    free = [axis for axis in axes if axis not in fixed]
    for sizes in factorised(rest, len(free)):
        degrees = dict(zip(free, sizes, strict=True))
        alone = free == [AXIS, FSDP] and degrees[AXIS] == 1  # that is the strategy fsdp
        if not alone and all(n > 1 for axis, n in degrees.items() if axis != AXIS):
            yield fixed | degrees


def factorised(number: int, count: int) -> Iterator[tuple[int, ...]]:
    if count == 1:
        yield (number,)
        return
    for first in range(1, number + 1):
        if number % first == 0:
            for others in factorised(number // first, count - 1):
                yield first, *others


def parts(degrees: Degrees) -> int:
    return math.prod(degrees.get(axis, 1) for axis in (SLICE, AXIS, FSDP))


def suits(model: Model, degrees: Degrees) -> bool:
    """Tell whether rows, layers and dims can be split so."""
    tensor, stages = degrees.get(TENSOR, 1), degrees.get(STAGE, 1)
    if model.rows % parts(degrees) or (stages > 1 and model.cut is None):
        return False
    if tensor > 1 and not model.tensor_dims:
        return False
    return not any(name and size % tensor for _, _, size, name in model.tensor_dims)


def microbatches(rows: int, wanted: int | None) -> list[int]:
    """Return the powers of two that divide a device's rows, or the wanted number."""
    numbers = [wanted] if wanted else [1 << bit for bit in range(rows.bit_length())]
    return [number for number in numbers if rows % number == 0]


def weigh(
    model: Model,
    hardware: Hardware,
    config: ParallelConfig,
    mesh: AbstractMesh,
    held: dict[str, float],
    updated: float,
) -> Iterator[Candidate]:
    """Yield a candidate for each policy of rematerialisation.

    `held` is the state, `updated` the bytes that an update reads and writes.
    """
    machine, degrees = hardware.machine, dict(mesh.shape)
    sent = traffic(
        config, model.params, mesh, model.cut, model.norms, machine.platform != "cpu"
    )
    links = {
        one.name: machine.collectives.get(one.kind) or slowest(hardware, degrees, one.axes)
        for one in sent
    }
    waits = {one.name: collective_seconds(one, links[one.name]) for one in sent}
    crossed = {
        one.name: " x ".join(axis for axis in one.axes if degrees[axis] > 1) for one in sent
    }
    hides = [one.name for one in sent if one.hides and machine.overlaps]
    # The policies that keep equally much are one.
    policies = {tuple(saved): name for name, saved in reversed(model.saved.items())}
    for remat in reversed(policies.values()):
        used = held | memory.temporary_bytes(model, config, mesh, remat)
        away = held["optimizer"] if config.hosts_optimizer else 0.0
        if away:  # fetched and new beside each other, where activations are gone
            gone = sum(used[name] for name in ("activations", "logits", "workspace"))
            used["optimizer"] = max(0.0, 2 * away - gone)
        used["program"] = machine.program * model.written * model.layer_share
        time = computing(model, hardware, config, degrees, remat)
        time["optimizer"] = updated / machine.memory_bandwidth
        time = {name: x * machine.factors.get(name, 1.0) for name, x in time.items()}
        time["overhead"] = machine.overhead
        time["host"] = 2 * away / machine.host
        hiding = sum(waits[name] for name in hides)
        hidden = min(hiding, time["compute"])
        shown = {name: waits[name] * (1 - hidden / hiding) for name in hides if hiding}
        yield Candidate(
            config.strategy, degrees, config.num_chunks(mesh) if STAGE in degrees else 1,
            config.accumulation, remat, used, time | waits | shown | {"hidden": hidden},
            crossed, sum(one.sent_bytes for one in sent), sum(one.count for one in sent),
            machine.memory,
        )  # fmt: skip


def computed_again(model: Model, remat: str) -> list[Product]:
    """Return the products of a layer's forward pass that its backward pass runs again."""
    if remat == "dots":
        return [one for one in model.layer if not one.fixed]  # those of attention
    return model.layer if memory.again(model, remat) else []


def computing(
    model: Model,
    hardware: Hardware,
    config: ParallelConfig,
    degrees: Degrees,
    remat: str,
) -> dict[str, float]:
    """Return the seconds of products, of reading and writing activations, and of bubbles.

    A backward pass costs two forward passes, and what it runs of the forward pass again.
    """
    machine, tensor, stages = (
        hardware.machine,
        degrees.get(TENSOR, 1),
        degrees.get(STAGE, 1),
    )
    rows, times = model.rows / parts(degrees) / config.accumulation, config.accumulation
    again = memory.again(model, remat) or stages > 1
    repeated = model.layer if stages > 1 else computed_again(model, remat)
    layer, outer, twice = (
        product_seconds(products, rows, tensor, machine, model.compute)
        for products in (model.layer, model.outer, repeated)
    )
    layers = model.num_layers / stages
    layer = layers * (3 * layer + twice)
    outer *= 4 if model.loss_chunk else 3
    every = next(iter(model.saved.values()))
    kept = activation_bytes(every, rows * model.seq_len, 1, tensor)
    kept = layers * max(0.0, kept - machine.cache)
    touched = (PASSES + 2 * again) * kept / machine.memory_bandwidth
    logits = PASSES * memory.logits_bytes(model, rows, tensor)
    logits *= model.seq_len / model.loss_chunk / machine.memory_bandwidth
    found = {
        "compute": times * (layer + outer),
        "activations": times * touched,
        "logits": times * logits,
    }
    if stages > 1:
        idle = ideal_bubble(stages, times, config.chunks)
        found["bubble"] = (found["compute"] + found["activations"]) * idle / (1 - idle)
    return found
