"""The config that chooses a strategy, its degrees and its options, and checks them."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

import jax
from jax.sharding import Mesh

from parallel.balance.shares import shares
from parallel.exchange.config import ExchangeConfig
from parallel.islands.submeshes import one_of_each
from parallel.local import LocalConfig
from parallel.mesh import batch_degree, device_mesh, is_absent
from parallel.offload import check_offload
from parallel.pipeline.program import check_cut
from parallel.program import SLICE, STAGE, TENSOR
from parallel.server.config import ServerConfig
from parallel.server.merging import MergeConfig
from parallel.strategies import STRATEGIES, Strategy
from parallel.uneven import Deal, Dealer

DEGREE = {"at_least": -1, "decides": False}


class Having(Collection):
    """The strategies whose rows have these values, of the table as it is when asked."""

    def __init__(self, **wanted: bool):
        self.wanted = wanted.items()

    def __iter__(self) -> Iterator[str]:
        return (
            name
            for name, row in STRATEGIES.items()
            if all(getattr(row, key) == value for key, value in self.wanted)
        )

    def __contains__(self, name: object) -> bool:
        return any(name == other for other in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def where(**wanted: bool) -> dict[str, Having]:
    """Return the metadata `only`: the strategies whose rows have these values."""
    return {"parallel.strategy": Having(**wanted)}


@dataclass
class SpreadConfig:
    """The fields that a whole run and a later phase of it have in common."""

    # how training is spread over devices (docs/strategies.md)
    strategy: str = field(default="jit", metadata={"choices": STRATEGIES, "decides": False})
    # number of replicas that share the batch; -1: as many as the devices allow
    data: int = field(default=-1, metadata=DEGREE)
    # number of groups of `data` replicas; slower links join the groups; -1: the rest
    slice: int = field(default=1, metadata=DEGREE)
    # devices that share the state of one replica (hsdp, hybrid); -1: the rest
    fsdp: int = field(default=1, metadata=DEGREE)
    # devices that share each layer (tensor, hybrid); -1: the rest
    tensor: int = field(default=1, metadata=DEGREE)
    # stages of the pipeline, in devices; -1: the rest
    stage: int = field(default=1, metadata=DEGREE)
    # chunks of layers on each stage of the pipeline
    chunks: int = field(
        default=2,
        metadata={"at_least": 1, "only": where(interleaves=True), "decides": False},
    )
    # microbatches that a device splits its rows into, to save memory; gradients add up;
    # auto: the fewest that fit, by the plan (docs/planner.md)
    accumulation: int = field(
        default=1, metadata={"at_least": 0, "words": {"auto": 0}, "decides": False}
    )
    # how fast each replica is, in any unit: a faster one takes more microbatches, of the
    # accumulation x replicas of a step; (): all take the same number
    speeds: tuple = field(
        default=(), metadata={"only": where(uneven=True), "decides": False}
    )
    # replicas that compute for longer than others: ignore them; name: measure all, and name
    # them in the log and the report; relieve: also move microbatches from them to others
    stragglers: str = field(
        default="ignore",
        metadata={
            "choices": ("ignore", "name", "relieve"),
            "only": where(uneven=True),
            "decides": False,
        },
    )
    # what lies in the host's memory between steps, and not in the device's; it is copied to
    # the device for the update, which takes time (docs/questions/how-is-memory-saved.md)
    offload: str = field(
        default="none",
        metadata={
            "choices": ("none", "optimizer"),
            "only": where(offloads=True),
            "decides": False,
        },
    )
    # a gradient of one replica whose norm is so many times the median of the others', or is
    # not finite where theirs are, stops the run; 0: none does
    outlier: float = field(
        default=0.0,
        metadata={
            "at_least": 0,
            "only": where(exchanges=True, exact=True),
            "decides": False,
        },
    )
    exchange: ExchangeConfig = field(
        default_factory=ExchangeConfig, metadata={"only": where(exchanges=True)}
    )
    local: LocalConfig = field(
        default_factory=LocalConfig,
        metadata={"only": where(apart=True)},
    )
    merge: MergeConfig = field(
        default_factory=MergeConfig,
        metadata={"only": where(apart=True, synchronous=False)},
    )
    server: ServerConfig = field(
        default_factory=ServerConfig, metadata={"only": where(synchronous=False)}
    )


@dataclass
class PhaseConfig(SpreadConfig):
    """A later phase of a run (experiments/run/phases): a strategy and all its fields.

    A field that is left out has its default, not the value of the phase before.
    """

    # steps of the run before this phase
    after: int = field(default=0, metadata={"at_least": 1, "decides": False})


@dataclass
class ParallelConfig(SpreadConfig):
    # later phases of the run, with strategies and degrees of their own; each a PhaseConfig:
    # the fields of parallel, and `after`, the steps of the run before it
    phases: tuple[PhaseConfig, ...] = ()

    @property
    def each_phase(self) -> list["ParallelConfig"]:
        """The configs of all phases; the first phase has the fields of this config."""
        names = [spec.name for spec in fields(SpreadConfig)]
        later = [
            ParallelConfig(**{name: getattr(phase, name) for name in names})
            for phase in self.phases
        ]
        return [replace(self, phases=()), *later]

    @property
    def strategies(self) -> list[str]:
        """The strategies of all phases."""
        return [self.strategy, *(phase.strategy for phase in self.phases)]

    @property
    def row(self) -> Strategy:
        return STRATEGIES[self.strategy]

    @property
    def hosts_optimizer(self) -> bool:
        """Whether the optimizer's state lies in the host's memory between steps."""
        return self.offload == "optimizer" and self.row.offloads

    @property
    def deals(self) -> bool:
        """Whether replicas may take different numbers of microbatches."""
        return bool(self.speeds) or self.stragglers != "ignore"

    def deal(self, num_replicas: int) -> Deal | None:
        """Return which microbatches each replica takes; None: those of its own rows."""
        if not self.deals:
            return None
        seconds = [1 / speed for speed in self.speeds or (1.0,) * num_replicas]
        counts = tuple(shares(self.accumulation * num_replicas, seconds).tolist())
        if self.stragglers == "ignore":
            return Deal(counts)
        return Deal(counts, Dealer(counts, moves=self.stragglers == "relieve"))

    @property
    def inner(self) -> "ParallelConfig | None":
        """The config of what an island does inside; None: a replica is one device."""
        name = self.local.inner
        if name == "none":
            return None
        if name not in STRATEGIES or not STRATEGIES[name].inside:
            raise ValueError(
                f"parallel.local.inner is {name!r}, which cannot synchronise the devices "
                f"of an island; choose one of none, {', '.join(Having(inside=True))}"
            )
        return replace(
            self, strategy=name, slice=1, exchange=ExchangeConfig(), local=LocalConfig()
        )

    @property
    def inside(self) -> "ParallelConfig":
        """The config of what a worker does inside; without one, it has one program."""
        return self.inner or replace(self, strategy="jit", exchange=ExchangeConfig())

    @property
    def serving(self) -> ServerConfig:
        """The server as it is run: islands are never in step."""
        return replace(self.server, mode="async") if self.row.apart else self.server

    def own_steps(self, steps: int) -> int:
        """Return how many steps one optimizer takes in a run of so many.

        Islands that push share the numbers. A faster one takes more of them: its schedule
        then stays at the final rate.
        """
        shared = self.row.apart and not self.row.synchronous
        return -(-steps // self.server.workers) if shared else steps

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of the mesh, the one of the slowest links first."""
        if self.inner is None:
            return self.row.axes
        inside = tuple(axis for axis in self.inner.row.axes if axis != SLICE)
        return (SLICE, *inside) if self.row.synchronous else inside

    def exchanging(self, mesh: Mesh) -> Mesh:
        """Return the mesh of the replicas: one device of each, if they are islands."""
        return one_of_each(mesh) if self.inner else mesh

    def mesh(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """Make the mesh of the strategy; ValueError if the devices do not fit.

        `devices` are those of this run, or absent ones to compile for.
        """
        axes = self.axes
        all_axes = {axis for row in STRATEGIES.values() for axis in row.axes}
        for axis in sorted(all_axes - set(axes)):
            if getattr(self, axis) not in (1, -1):
                able = [name for name, other in STRATEGIES.items() if axis in other.axes]
                inside = f" with parallel.local.inner={self.local.inner}"
                raise ValueError(
                    f"parallel.{axis} is {getattr(self, axis)}, but strategy "
                    f"{self.strategy!r}{inside if self.inner else ''} has no axis {axis}; "
                    f"set it to 1, or choose one of {', '.join(able)}"
                )
        degrees = {axis: getattr(self, axis) for axis in axes}
        return device_mesh(
            {
                axis: n
                for axis, n in degrees.items()
                if axis != SLICE or n != 1 or self.inner
            },
            devices,
        )

    def validate_phases(self, steps: int) -> None:
        """Raise ValueError if phases do not follow one another in so many steps."""
        before = 0
        for index, phase in enumerate(self.phases):
            name = f"parallel.phases[{index}]"
            if phase.after <= before:
                raise ValueError(
                    f"{name} begins after {phase.after} steps, but the phase before it "
                    f"after {before}; give phases in the order of their steps"
                )
            if phase.after >= steps:
                raise ValueError(
                    f"{name} begins after {phase.after} steps, but the run has {steps}; "
                    "leave that phase out, or give more steps"
                )
            before = phase.after
        rows = {name: STRATEGIES[name] for name in self.strategies}
        apart = [n for n, row in rows.items() if row.apart and not row.synchronous]
        if self.phases and apart:
            raise ValueError(
                f"strategy {apart[0]!r} cannot be one of several phases: each of its "
                "islands takes fewer steps than the run, so the learning rate would jump; "
                "leave out parallel.phases, or choose another strategy"
            )

    def validate(self, rows: int, mesh: Mesh, name: str = "data.batch_size") -> None:
        """Raise ValueError if a batch of so many rows or the mesh does not suit."""
        if not self.accumulation:
            raise ValueError(
                "parallel.accumulation is auto, which train, measure and explain turn into "
                "a number; give a number here"
            )
        if self.row.exchanges and self.row.synchronous:
            self.exchange.validate(self.exchanging(mesh), self.accumulation)
        if is_absent(mesh) and not self.row.ahead:
            able = [name for name, row in STRATEGIES.items() if row.ahead]
            raise ValueError(
                f"strategy {self.strategy!r} compiles only for devices that are here; "
                f"choose one of {', '.join(able)}"
            )
        self.row.check(self, mesh)
        if self.hosts_optimizer:
            check_offload(mesh)
        tensor, local = mesh.shape.get(TENSOR, 1), jax.local_device_count()
        if jax.process_count() > 1 and local % tensor:
            raise ValueError(
                f"parallel.tensor {tensor} does not divide the {local} devices of a "
                "process; the devices that share a layer must be in one process"
            )

        self.validate_rows(rows, name, mesh)

    def validate_rows(self, rows: int, name: str, mesh: Mesh) -> None:
        """Raise ValueError if a batch of so many rows cannot be split; `name` names it."""
        parts = {"data degree": batch_degree(mesh), "accumulation": self.accumulation}
        if not self.row.synchronous and self.serving.synchronous:
            parts["parallel.server.workers"] = self.server.workers
        if rows % (product := math.prod(parts.values())):
            told = " x ".join(f"{part} {number}" for part, number in parts.items())
            raise ValueError(
                f"{name} {rows} is not divisible by {told} = {product}; change one of them"
            )

    def validate_layers(self, num_layers: int | None, mesh: Mesh) -> None:
        """Raise ValueError if a pipeline cannot cut this many layers; None: no layers."""
        if STAGE in mesh.shape:
            check_cut(num_layers, mesh.shape[STAGE], self.num_chunks(mesh))

    def num_chunks(self, mesh: Mesh) -> int:
        """Return the chunks of each stage; a single stage has nothing to interleave."""
        interleaves = (self.inner or self).row.interleaves
        return self.chunks if interleaves and mesh.shape[STAGE] > 1 else 1
