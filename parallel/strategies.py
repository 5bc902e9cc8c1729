"""The table of strategies; parallel/config.py chooses a row.

To add a strategy, write a constructor of a Program and enter a row in STRATEGIES.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
from jax.sharding import Mesh

from parallel.balance.shares import check_speeds
from parallel.cost import closed_forms
from parallel.cost.closed_forms import Cut
from parallel.exchange.config import ExchangeConfig, build_exchange
from parallel.islands.early import early_program
from parallel.islands.program import islands_program
from parallel.islands.submeshes import islands_of, without_slices
from parallel.layout import (
    FSDP,
    REPLICATED,
    ZERO1,
    ZERO2,
    Layout,
    validate_tensor_dims,
)
from parallel.local import PLANS, local_program
from parallel.mesh import batch_degree, is_absent
from parallel.pipeline.program import pipeline_program
from parallel.pipeline.schedules import build_schedule
from parallel.program import AXIS, SLICE, STAGE, TENSOR, Learner, Params, Program
from parallel.replicas import pmap_program, shard_map_program
from parallel.server.config import MOST_NUMBERS, check_exchange
from parallel.server.kinds import Merging, Parts, gradient_parts, island_parts
from parallel.server.merging import delayed_nesterov
from parallel.server.program import server_program
from parallel.sharded import jit_program, whole_matrix_program, zero_program

if TYPE_CHECKING:
    from parallel.config import ParallelConfig

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
    written: bool = True  # its sums are written out; else the compiler places them
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
    written: bool = True,
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
        written=written,
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
    "jit": sharded(
        jit_program,
        REPLICATED,
        closed_forms.jit_bytes,
        REDUCED,
        counts=True,
        written=False,
    ),
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


def build_program(config: "ParallelConfig", learner: Learner, mesh: Mesh) -> Program:
    """Make the Program of the strategy; ValueError if the mesh cannot split the layers."""
    validate_tensor_dims(learner.task.tensor_dims, mesh.shape.get(TENSOR, 1))
    learner = learner._replace(offload=config.hosts_optimizer)
    return config.row.program(learner, mesh, config)
