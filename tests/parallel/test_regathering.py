"""FSDP keeps what the model keeps, with shards for weights, and gathers when it must."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import PartitionSpec as P

from parallel.config import ParallelConfig
from parallel.cost.closed_forms import cut_of
from parallel.layout import FSDP, specs
from parallel.mesh import data_mesh
from parallel.regathering import regathering_loss
from tests.parallel.toy import (
    BATCH,
    SGD,
    STEPS,
    assert_equal,
    batches,
    one_device,
    toy_learner,
    toy_program,
    toy_task,
    train,
)

DEGREE, LAYERS = 8, 3
# Every parameter is large enough to be sharded.
SHARDED = {"num_layers": LAYERS, "norm": "none", "bias": False, "num_kv_heads": 0}


def floats(arrays) -> Counter:
    """Count the arrays of each shape and type; positions, which are integers, aside."""
    return Counter(
        (x.shape, x.dtype.name) for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)
    )


def saved_by(loss, params, batch):
    return jax.tree.leaves(jax.vjp(lambda params: loss(params, batch, None)[0], params)[1])


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"scan_layers": True},
        {"remat": "full", "tied": True, "loss_chunk": 4, "positions": "learned"},
        {"remat": "dots", "scan_layers": True},
    ],
    ids=["none", "scanned", "full", "dots scanned"],
)
def test_it_saves_what_the_model_saves_but_shards_for_weights(model):
    """The oracle is plain autodiff on one device, with parameters of the compute type."""
    task = toy_task("bfloat16", **SHARDED | model)
    mesh = data_mesh(DEGREE)
    params = jax.eval_shape(task.init, jax.random.key(0))
    param_specs = specs(FSDP.params, params, mesh.shape)
    batch = batches(1)[0]
    rows = jax.tree.map(lambda x: x[: BATCH // DEGREE], batch)

    own = jax.eval_shape(lambda p: saved_by(task.loss, task.cast(p), rows), params)
    loss = regathering_loss(task, mesh, param_specs)
    spread = jax.shard_map(
        lambda shards, batch: saved_by(loss, shards, batch),
        mesh=mesh, in_specs=(param_specs, P("data")), out_specs=P(), check_vma=False,
    )  # fmt: skip
    found = jax.eval_shape(spread, params, batch)

    layers = "scanned_layers" if "scan_layers" in model else "layers"
    layers = params[layers], param_specs[layers]
    whole, shards = Counter(), Counter()
    for x, spec in zip(*map(jax.tree.leaves, layers), strict=True):
        dim = list(spec).index("data")
        whole[x.shape, "bfloat16"] += 1
        shards[
            (*x.shape[:dim], x.shape[dim] // DEGREE, *x.shape[dim + 1 :]), "float32"
        ] += 1
    assert whole <= floats(own)
    assert floats(found) == floats(own) - whole + shards


def executed(jaxpr: Jaxpr, name: str, times: int = 1) -> list:
    """List (times, operation) of each operation of this name, those in loops included."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == name:
            found.append((times, eqn))
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, ClosedJaxpr):
                    inner = inner.jaxpr
                if isinstance(inner, Jaxpr):
                    repeats = times * eqn.params.get("length", 1)
                    found += executed(inner, name, repeats)
    return found


@pytest.mark.parametrize("model", [
    {"scan_layers": True, "tied": True},
    {"remat": "full"},
], ids=["scanned tied", "unrolled"])  # fmt: skip
@pytest.mark.parametrize("strategy", ["fsdp", "hsdp"])
def test_gathers_and_scatters_as_written(strategy, model):
    """Before any compiler merges: by piece, in the compute type, as the closed form has."""
    degrees = {"fsdp": {"data": 8}, "hsdp": {"data": 2, "fsdp": 4}}[strategy]
    config = ParallelConfig(strategy=strategy, accumulation=2, **degrees)
    learner = toy_learner(SGD, "bfloat16", **SHARDED | model)
    program = toy_program(strategy, learner, accumulation=2, **degrees)
    batch = program.place(batches(1)[0])
    written = jax.make_jaxpr(program.step)(program.abstract, batch).jaxpr

    gathers, scatters = (executed(written, x) for x in ("all_gather", "reduce_scatter"))
    # Forward and backward for each layer; the embedding; the head.
    assert sum(times for times, _ in gathers) == 2 * (2 * LAYERS + 2)
    assert sum(times for times, _ in scatters) == 2 * (LAYERS + 2)
    assert {eqn.outvars[0].aval.dtype.name for _, eqn in gathers} == {"bfloat16"}
    assert {eqn.invars[0].aval.dtype.name for _, eqn in scatters} == {"float32"}

    gathered = sum(times * eqn.outvars[0].aval.size for times, eqn in gathers)
    scattered = sum(times * eqn.invars[0].aval.size for times, eqn in scatters)
    degree = degrees.get("fsdp", degrees["data"])
    sent = (2 * gathered + 4 * scattered) * (degree - 1) / degree
    params = program.abstract.params
    if strategy == "hsdp":  # and one all-reduce of a shard, over two
        sent += 4 * sum(x.size for x in jax.tree.leaves(params)) / degree
    cut = cut_of(learner.task, params, batches(1)[0])
    assert sent == config.row.sent_bytes(config, params, program.mesh, cut)


@pytest.mark.parametrize("model", [
    {"scan_layers": True, "num_layers": 2, "tied": True, "remat": "dots"},
    {"num_layers": 2, "tied": True, "positions": "learned", "bias": False},
], ids=["scanned", "unrolled"])  # fmt: skip
def test_parameters_equal_one_device(model):
    _, params, losses = train(toy_program("fsdp", toy_learner(SGD, **model), data=8))
    expected, expected_losses = one_device(**model)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_equal(params, expected)


def test_a_task_without_stages_is_one_layer():
    learner = toy_learner(SGD)
    learner = learner._replace(task=learner.task._replace(stages=None))
    _, params, losses = train(toy_program("fsdp", learner, data=8))
    expected, expected_losses = one_device()
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_equal(params, expected)


def test_bfloat16_is_as_near_as_without_shards():
    """Sums over devices are in float32, so sharding adds no error to that of the type."""
    model = {"num_layers": 2, "tied": True}
    start = jax.device_get(jax.jit(toy_task(**model).init)(jax.random.key(1)))
    expected, _ = one_device(**model)

    def error(strategy: str) -> float:
        program = toy_program(strategy, toy_learner(SGD, "bfloat16", **model), data=8)
        _, params, _ = train(program, STEPS)
        off = jax.tree.map(lambda x, y, z: np.linalg.norm(x - y) / np.linalg.norm(y - z),
                           params, expected, start)  # fmt: skip
        return max(jax.tree.leaves(off))

    assert error("fsdp") < 1.1 * error("zero1") < 0.1
