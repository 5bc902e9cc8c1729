"""Pipeline parallelism: GPipe, 1F1B and interleaved 1F1B over a `stage` mesh axis.

Each stage holds some of the layers and runs the microbatches through them. A schedule
(parallel/pipeline/schedules.py) says what each stage does and when, and
parallel/pipeline/gradients.py follows it. The optimizer then runs on global arrays, so that
a global norm covers all stages.

The state has the layers stacked, [L, ...], in the order of the devices; the first dim is
split over the stages. A checkpoint has the layers as the Task has them.
"""

from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.mesh import batch_axes, place_rows
from parallel.pipeline.gradients import pipeline_gradients
from parallel.pipeline.schedules import build_schedule
from parallel.pipeline.stacking import build_stacking
from parallel.program import (
    STAGE,
    Batch,
    Learner,
    Metrics,
    Program,
    TrainState,
    abstract,
    divided,
    total_weight,
    update,
)


def pipeline_program(
    learner: Learner, mesh: Mesh, accumulation: int, name: str, num_chunks: int = 1
) -> Program:
    """Return the Program of a pipeline over the mesh axes (data, stage).

    The batch is cut into `accumulation` microbatches. `name` is one of schedules.ORDERS;
    only interleaving uses `num_chunks`. Raises ValueError if the stages cannot get equally
    many layers.
    """
    num_stages = mesh.shape[STAGE]
    schedule = build_schedule(name, num_stages, accumulation, num_chunks)
    num_layers = learner.task.stages and learner.task.stages.num_layers
    check_cut(num_layers, num_stages, schedule.num_chunks)
    order = device_order(num_layers, num_stages, schedule.num_chunks)
    stacking = build_stacking(learner, order)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), stacking.specs)
    saved_shardings = jax.tree.map(partial(spread_over_stages, mesh), stacking.saved)
    axes = batch_axes(mesh)
    spread = jax.shard_map(
        partial(pipeline_gradients, learner, schedule, axes),
        mesh=mesh,
        in_specs=(stacking.specs.params, P(axes), P(), P()),
        out_specs=(stacking.specs.params, P()),
        check_vma=False,
    )

    @partial(
        jax.jit,
        in_shardings=(shardings, NamedSharding(mesh, P(axes))),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
    )
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key, batch = learner.step_key(state.step), learner.scaling.mark(state.scale, batch)
        grads, sums = spread(state.params, batch, key, state.scale.value)
        means = divided(grads, total_weight(sums, state.scale))
        return update(learner, state, state.params, means, sums)

    return Program(
        init=jax.jit(stacking.init, out_shardings=shardings),
        step=step,
        params=jax.jit(
            lambda state: stacking.portable(state).params,
            out_shardings=saved_shardings.params,
        ),
        place=lambda batch: place_rows(mesh, batch),
        mesh=mesh,
        abstract=abstract(stacking.init, shardings),
        portable=jax.jit(stacking.portable, out_shardings=saved_shardings),
        adopt=jax.jit(stacking.adopt, out_shardings=shardings),
        saved=abstract(learner.initial_state, saved_shardings),
    )


def check_cut(num_layers: int | None, num_stages: int, num_chunks: int) -> None:
    """Raise ValueError if the layers do not give equal parts; None: no layers at all."""
    if num_layers is None:
        raise ValueError(
            f"parallel.stage is {num_stages}, but this task cannot be cut into stages; "
            "choose a strategy without the axis stage, such as jit or fsdp"
        )
    parts = num_stages * num_chunks
    if num_layers % parts:
        chunks = f" x parallel.chunks {num_chunks} = {parts}" if num_chunks > 1 else ""
        raise ValueError(
            f"model.num_layers {num_layers} is not divisible by parallel.stage {num_stages}"
            f"{chunks}; change one of them"
        )


def device_order(num_layers: int, num_stages: int, num_chunks: int) -> np.ndarray:
    """Order the numbers of the layers so that those of a stage lie together."""
    layers = np.arange(num_layers).reshape(num_chunks, num_stages, -1)
    return layers.swapaxes(0, 1).ravel()


def spread_over_stages(mesh: Mesh, x: jax.ShapeDtypeStruct) -> NamedSharding:
    """Split an array that is saved, so that no device has to hold the whole model."""
    degree = mesh.shape[STAGE]
    dim = next((d for d, size in enumerate(x.shape) if size % degree == 0), None)
    axes = [STAGE if d == dim else None for d in range(len(x.shape))]
    return NamedSharding(mesh, P(*axes))
