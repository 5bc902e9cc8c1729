"""The table of strategies, and the config that chooses one.

To add a strategy, write a constructor of a Program and enter a row in STRATEGIES.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from parallel.balance.shares import check_speeds, shares
from parallel.cost import closed_forms
from parallel.cost.closed_forms import Cut
from parallel.exchange.config import ExchangeConfig, build_exchange
from parallel.islands.early import early_program
from parallel.islands.program import islands_program
from parallel.islands.submeshes import islands_of, one_of_each, without_slices
from parallel.layout import (
    FSDP,
    REPLICATED,
    ZERO1,
    ZERO2,
    Layout,
    validate_tensor_dims,
)
from parallel.local import PLANS, LocalConfig, local_program
from parallel.mesh import batch_degree, device_mesh, is_absent
from parallel.offload import check_offload
from parallel.pipeline.program import check_cut, pipeline_program
from parallel.pipeline.schedules import build_schedule
from parallel.program import AXIS, SLICE, STAGE, TENSOR, Learner, Params, Program
from parallel.replicas import pmap_program, shard_map_program
from parallel.server.config import MOST_NUMBERS, ServerConfig, check_exchange
from parallel.server.kinds import Merging, Parts, gradient_parts, island_parts
from parallel.server.merging import MergeConfig, delayed_nesterov
from parallel.server.program import server_program
from parallel.sharded import jit_program, whole_matrix_program, zero_program
from parallel.uneven import Deal, Dealer

# Kinds of collectives, as compiled programs name them.
GATHERED = {"reduce-scatter", "all-gather"}
REDUCED = {"all-reduce"}


class Strategy(NamedTuple):
    """A row of the table: all that is known of a strategy.

    No other code asks for the name of a strategy.
    """

    program: Callable[[Learner, Mesh, "ParallelConfig"], Program]
    # The bytes that one device sends in a step; None if there is no closed form. The
    # parameters are shapes; the cut is None if the task is not cut into stages.
    sent_bytes: Callable[["ParallelConfig", Params, Mesh, Cut | None], float | None]
    # The kinds of collectives that carry more than metrics in the compiled step.
    kinds: Callable[["ParallelConfig"], set[str]]
    axes: tuple[str, ...] = (AXIS,)  # of its mesh, the axis with the slowest links first
    exchanges: bool = False  # gradients or moves cross devices through an Exchange
    synchronous: bool = True  # one program on all devices; else workers push to a server
    # What the workers and shards of a server are made of; None: there is no server.
    parts: Callable[[Learner, Mesh, "ParallelConfig"], Parts] | None = None
    exact: bool = True  # equal to one device up to rounding, if its exchange is exact
    apart: bool = False  # replicas take several steps before they exchange their moves
    traces: bool = True  # a step sees the whole gradient and the outputs of all layers
    counts: bool = False  # can also count tuples (parallel/counting)
    inside: bool = True  # can synchronise the devices of an island (parallel/islands)
    named: bool = True  # the optimizer sees parameters under their names
    ahead: bool = True  # also compiles for devices that are absent
    uneven: bool = False  # replicas may take different numbers of microbatches
    offloads: bool = False  # the optimizer's state may lie in the host's memory
    interleaves: bool = False  # a stage of its pipeline has several chunks of layers
    layout: Layout = REPLICATED  # where the arrays of a replica's state lie
    check: Callable[["ParallelConfig", Mesh], None] = lambda config, mesh: None


def replicas(
    constructor: Callable[..., Program],
    axes: tuple[str, ...] = (AXIS,),
    ahead: bool = True,
    inside: bool = True,
) -> Strategy:
    """Return the row of a strategy in which replicas exchange gradients in each step."""

    def program(learner: Learner, mesh: Mesh, config: "ParallelConfig") -> Program:
        return constructor(
            learner,
            mesh,
            config.accumulation,
            build_exchange(config.exchange, mesh),
            config.exchange.every,
            measure_noise=config.exchange.exact,
            deal=config.deal(batch_degree(mesh)),
            watch_norms=config.outlier > 0,
        )

    def kinds(config: "ParallelConfig") -> set[str]:
        rows = {"all-gather"} if config.deals else set()
        return closed_forms.exchange_kinds(config) | rows

    def check(config: "ParallelConfig", mesh: Mesh) -> None:
        if config.deals:
            check_deal(config, mesh)

    return Strategy(
        program,
        lambda config, *given: (
            None
            if config.deals  # the rows that all replicas gather are not in the closed form
            else closed_forms.replica_bytes(config, *given)
        ),
        kinds,
        axes,
        exchanges=True,
        counts=True,
        uneven=True,
        check=check,
        ahead=ahead,
        inside=inside,
    )


def check_deal(config: "ParallelConfig", mesh: Mesh) -> None:
    """Raise ValueError if microbatches cannot be dealt as the config says."""
    if config.speeds:
        check_speeds(config.speeds, batch_degree(mesh), "parallel.speeds")
    every = config.exchange.every
    if every not in (0, config.accumulation):
        raise ValueError(
            f"parallel.exchange.every is {every}, but with parallel.speeds or "
            "parallel.stragglers replicas exchange once in a step, after their different "
            "numbers of microbatches; unset one of them"
        )
    if is_absent(mesh) and config.stragglers != "ignore":
        raise ValueError(
            f"parallel.stragglers is {config.stragglers!r}, but absent devices have no "
            "host to measure on; set it to 'ignore'"
        )


def check_moves(strategy: str, exchange: ExchangeConfig) -> None:
    """Raise ValueError for what makes sense for the gradients of steps, not for moves."""
    usual = ExchangeConfig()
    for name, reason in {
        "every": "replicas meet after whole steps (parallel.local.every)",
        "delay": "a late move would be that of a whole round, from parameters that the "
        "replicas have left; streaming_diloco has parallel.local.overlap",
        "compensation": "it corrects a delay",
        "clip": "a move is the sum of clipped steps already",
    }.items():
        if (value := getattr(exchange, name)) != getattr(usual, name):
            raise ValueError(
                f"parallel.exchange.{name} is {value}, but under strategy {strategy!r} "
                f"replicas exchange moves, not gradients: {reason}; unset it"
            )
    if exchange.codec == "dgc":
        raise ValueError(
            f"parallel.exchange.codec=dgc adds its momentum to gradients, but under "
            f"strategy {strategy!r} replicas exchange moves, which have the momentum of "
            "both optimizers; choose top_k, which sends the same elements without it"
        )


def local(name: str) -> Strategy:
    """Return the row of a strategy whose replicas meet once in many steps."""

    def program(learner: Learner, mesh: Mesh, config: "ParallelConfig") -> Program:
        plan = PLANS[name](config.local)._replace(last=learner.num_steps)
        inner = config.inner
        exchange = build_exchange(config.exchange, config.exchanging(mesh))
        if inner is None:
            return local_program(learner, mesh, config.accumulation, exchange, plan)

        def build_inner(learner: Learner, island: Mesh) -> Program:
            return build_program(inner, learner, island)

        islands = islands_program(learner, mesh, build_inner, exchange, plan)
        if not plan.first:
            return islands
        early = build_inner(learner, without_slices(mesh))
        return early_program(plan.first, early, islands)

    def kinds(config: "ParallelConfig") -> set[str]:
        inside = config.inner.row.kinds(config.inner) if config.inner else set()
        return inside | closed_forms.exchange_kinds(config)

    def check(config: "ParallelConfig", mesh: Mesh) -> None:
        plan = PLANS[name](config.local)
        plan.validate()
        check_moves(name, config.exchange)
        if config.inner:
            check_islands(config, mesh)

    return Strategy(
        program,
        closed_forms.local_bytes,
        kinds,
        (SLICE, AXIS),
        exchanges=True,
        exact=False,
        apart=True,
        traces=False,
        inside=False,
        check=check,
    )


def check_islands(config: "ParallelConfig", mesh: Mesh) -> None:
    """Raise ValueError if the mesh gives no islands that the inner strategy can run on."""
    told, inner = f"parallel.local.inner={config.local.inner}", config.inner
    num_islands, size = mesh.shape[SLICE], mesh.size // mesh.shape[SLICE]
    if num_islands == 1 or size == 1:
        raise ValueError(
            f"{told} makes each of the parallel.slice {num_islands} replicas an island of "
            f"several devices, and there are {mesh.size} devices, {size} for each; set "
            "parallel.slice to 2 or more that leave 2 devices each, or unset inner"
        )
    for devices in mesh.devices:
        hosts = {device.process_index for device in devices.flat}
        if len(hosts) > 1 and not is_absent(mesh):
            raise ValueError(
                f"{told}: an island of {size} devices lies in {len(hosts)} processes, and "
                "it must lie in one; give as many islands as there are processes, or a "
                f"multiple, in parallel.slice, which is {num_islands}"
            )
    inner.row.check(inner, islands_of(mesh)[0])


def sharded(
    constructor: Callable[..., Program],
    layout: Layout,
    sent_bytes: Callable,
    kinds: set[str],
    axes: tuple[str, ...] = (AXIS,),
    counts: bool = False,
    named: bool = True,
) -> Strategy:
    """Return the row of a strategy that splits the state by a Layout."""
    return Strategy(
        lambda learner, mesh, config: constructor(
            learner, mesh, config.accumulation, layout
        ),
        sent_bytes,
        lambda config: kinds,
        axes,
        counts=counts,
        layout=layout,
        named=named,
        offloads=True,
    )


def pipeline(name: str, interleaves: bool = False) -> Strategy:
    """Return the row of a pipeline with the schedule `name`."""

    def program(learner: Learner, mesh: Mesh, config: "ParallelConfig") -> Program:
        chunks = config.num_chunks(mesh)
        return pipeline_program(learner, mesh, config.accumulation, name, chunks)

    def check(config: "ParallelConfig", mesh: Mesh) -> None:
        build_schedule(name, mesh.shape[STAGE], config.accumulation, config.chunks)

    return Strategy(
        program,
        lambda config, params, mesh, cut: closed_forms.pipeline_bytes(
            mesh, cut, config.accumulation, config.num_chunks(mesh)
        ),
        lambda config: {"collective-permute", "all-reduce"},
        (AXIS, STAGE),
        traces=False,
        interleaves=interleaves,
        check=check,
    )


def server(
    parts: Callable[[Learner, Mesh, "ParallelConfig"], Parts],
    check: Callable[["ParallelConfig", Mesh], None],
    apart: bool = False,
) -> Strategy:
    """Return the row of workers that push to server shards, each at its own time."""

    def check_all(config: "ParallelConfig", mesh: Mesh) -> None:
        if jax.process_count() > 1:
            raise ValueError(
                f"strategy {config.strategy!r} runs in one process of JAX, and there are "
                f"{jax.process_count()}; workers in processes of their own are those of "
                "Ray: parallel.server.pool=ray"
            )
        check(config, mesh)
        config.serving.validate(config.exchange, config.strategy)

    return Strategy(
        lambda learner, mesh, config: server_program(parts(learner, mesh, config), mesh),
        lambda config, params, mesh, cut: None,
        lambda config: set(),
        exchanges=True,
        synchronous=False,
        parts=parts,
        exact=False,
        apart=apart,
        traces=False,
        inside=False,
        ahead=False,
        check=check_all,
    )


def gradient_server(learner: Learner, mesh: Mesh, config: "ParallelConfig") -> Parts:
    return gradient_parts(
        learner, mesh, config.server, config.exchange, config.accumulation
    )


def island_server(learner: Learner, mesh: Mesh, config: "ParallelConfig") -> Parts:
    local, merge = config.local, config.merge
    outer = delayed_nesterov(
        local.learning_rate, local.momentum, merge.momentum_every, merge.activation
    )
    inner = build_program(config.inside, learner, mesh)
    merging = Merging(merge, local.every)
    return island_parts(learner, inner, config.serving, config.exchange, merging, outer)


def check_merging(config: "ParallelConfig", mesh: Mesh) -> None:
    """Raise ValueError if islands cannot train or be merged as the config says."""
    num_workers, every = config.server.workers, config.local.every
    config.merge.validate(num_workers)
    if num_workers * every > MOST_NUMBERS:
        raise ValueError(
            f"parallel.server.workers {num_workers} x parallel.local.every {every} = "
            f"{num_workers * every} numbers may be out, and a checkpoint has room for "
            f"{MOST_NUMBERS}; lower one of them"
        )
    check_moves(config.strategy, config.exchange)
    check_exchange(config.exchange, config.strategy)
    config.inside.row.check(config.inside, mesh)


STRATEGIES = {
    "jit": sharded(jit_program, REPLICATED, closed_forms.jit_bytes, REDUCED, counts=True),
    # pmap takes arrays on its devices, and cannot be part of another program.
    "pmap": replicas(pmap_program, ahead=False, inside=False),
    "shard_map": replicas(shard_map_program, (SLICE, AXIS)),
    "zero1": sharded(zero_program, ZERO1, closed_forms.zero1_bytes, GATHERED),
    "zero1_whole": sharded(
        whole_matrix_program,
        ZERO1,
        closed_forms.zero1_whole_bytes,
        GATHERED,
        named=False,
    ),
    "zero2": sharded(zero_program, ZERO2, closed_forms.zero2_bytes, GATHERED),
    "fsdp": sharded(zero_program, FSDP, closed_forms.fsdp_bytes, GATHERED),
    "hsdp": sharded(
        zero_program, FSDP, closed_forms.split_bytes, GATHERED | REDUCED, (AXIS, "fsdp")
    ),
    "tensor": sharded(
        zero_program, REPLICATED, closed_forms.split_bytes, REDUCED, (AXIS, TENSOR)
    ),
    "hybrid": sharded(
        zero_program,
        FSDP,
        closed_forms.split_bytes,
        GATHERED | REDUCED,
        (AXIS, "fsdp", TENSOR),
    ),
    "gpipe": pipeline("gpipe"),
    "1f1b": pipeline("1f1b"),
    "interleaved": pipeline("interleaved", interleaves=True),
    **{name: local(name) for name in PLANS},
    "parameter_server": server(gradient_server, lambda config, mesh: None),
    "async_diloco": server(island_server, check_merging, apart=True),
}
EXACT = [name for name, row in STRATEGIES.items() if row.exact]

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
    def keeps_spikes(self) -> bool:
        """Whether what is left of a huge gradient would be sent in later steps.

        Moves, and what a worker's optimizer makes, are made of clipped gradients.
        """
        pushes = not (self.row.synchronous or self.row.apart)
        gradients = pushes and self.server.optimizer == "server"
        return (self.row.exact or gradients) and self.exchange.keeps_spikes

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
            name_of_pieces = "pieces" if self.server.pieces else "workers"
            parts[f"parallel.server.{name_of_pieces}"] = self.server.num_pieces
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


def build_program(config: "ParallelConfig", learner: Learner, mesh: Mesh) -> Program:
    """Make the Program of the strategy; ValueError if the mesh cannot split the layers."""
    validate_tensor_dims(learner.task.tensor_dims, mesh.shape.get(TENSOR, 1))
    learner = learner._replace(offload=config.hosts_optimizer)
    return config.row.program(learner, mesh, config)
