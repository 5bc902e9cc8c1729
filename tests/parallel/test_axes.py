"""Laws 1 and 6 for layouts over several mesh axes: data, fsdp and tensor."""

import functools

import jax
import numpy as np
import optax
import pytest

from lm.models.transformer.config import TransformerConfig
from parallel.cost.ledger import collectives
from parallel.layout import (
    MIN_SHARDED_SIZE,
    bytes_per_device,
    tensor_dim,
    validate_tensor_dims,
)
from parallel.strategies import ParallelConfig
from tests.parallel.toy import (
    BATCH,
    MODEL,
    SEQ_LEN,
    assert_equal,
    batches,
    oracle,
    toy_learner,
    toy_program,
    train,
    whole_matrix_optimizer,
)

STEPS = 5
SGD = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.3, momentum=0.9))
ADAM = optax.adam(1e-2)
MESHES = {
    "hsdp 2x4": ("hsdp", {"data": 2, "fsdp": 4}),
    "hsdp 4x2": ("hsdp", {"data": 4, "fsdp": 2}),
    "tensor 4x2": ("tensor", {"data": 4, "tensor": 2}),
    "tensor 1x4": ("tensor", {"data": 1, "tensor": 4}),  # 4 > 2 key/value heads
    "tensor 2x4": ("tensor", {"data": 2, "tensor": 4}),
    "hybrid 2x2x2": ("hybrid", {"data": 2, "fsdp": 2, "tensor": 2}),
    "hybrid 1x4x2": ("hybrid", {"data": 1, "fsdp": 4, "tensor": 2}),
    "hybrid 2x4x1": ("hybrid", {"data": 2, "fsdp": 4, "tensor": 1}),
}
CUBE = "hybrid 2x2x2"


@functools.cache
def one_device(**model):
    return oracle(SGD, STEPS, **model)


def program(name, tx=SGD, accumulation=1, **learner):
    strategy, degrees = MESHES[name]
    return toy_program(
        strategy, toy_learner(tx, **learner), accumulation=accumulation, **degrees
    )


def assert_trains_as_one_device(name, accumulation=1, **model):
    _, params, losses = train(program(name, accumulation=accumulation, **model), STEPS)
    expected, expected_losses = one_device(**model)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_equal(params, expected)


@pytest.mark.parametrize("name", MESHES)
def test_parameters_equal_one_device(name):
    assert_trains_as_one_device(name)


@pytest.mark.parametrize("name", ["hsdp 2x4", "tensor 4x2", CUBE])
def test_accumulation_is_exact_with_dropout(name):
    assert_trains_as_one_device(name, accumulation=2, dropout=0.2)


@pytest.mark.parametrize("model", [
    {"scan_layers": True, "num_layers": 2, "remat": "full"},
    # Without rotary positions a bias of the keys changes nothing: its gradient is noise.
    {"tied": True, "loss_chunk": 4, "positions": "learned", "bias": False},
    {"activation": "gelu", "norm": "layernorm", "num_kv_heads": 0, "attention": "xla"},
], ids=["scanned", "tied", "gpt2"])  # fmt: skip
def test_other_models_on_three_axes(model):
    assert_trains_as_one_device(CUBE, **model)


@pytest.mark.parametrize("name, rate", [("muon", 0.03), ("adafactor", 0.5)])
def test_optimizers_that_need_whole_matrices(name, rate):
    tx = whole_matrix_optimizer(name, rate, STEPS)
    _, _, losses = train(program(CUBE, tx), STEPS)
    np.testing.assert_allclose(losses, oracle(tx, STEPS)[1], rtol=2e-5)


def leaves(name):
    """Return of each parameter its size and the devices that it is cut over, by axis."""
    degrees = {"fsdp": 1, "tensor": 1} | MESHES[name][1]
    learner = toy_learner(ADAM)
    shapes = jax.eval_shape(learner.init, jax.random.key(0))
    result = []
    for path, x in jax.tree.leaves_with_path(shapes):
        split = tensor_dim(path, x.shape, learner.tensor_dims, degrees["tensor"])
        tensor = 1 if split is None else degrees["tensor"]
        fsdp = degrees["fsdp"] if x.size >= MIN_SHARDED_SIZE else 1
        result.append((x.size, fsdp, tensor))
    return result


@pytest.mark.parametrize("name", ["hsdp 2x4", "tensor 2x4", CUBE])
def test_state_bytes_per_device(name):
    state = program(name, ADAM).init(jax.random.key(0))
    params = sum(4 * size // (fsdp * tensor) for size, fsdp, tensor in leaves(name))
    assert bytes_per_device(state.params) == params
    assert bytes_per_device(state.opt) == 2 * params + 4  # and Adam's count
    first = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state.params)]
    assert sum(first) == params


def compiled_collectives(name):
    made = program(name, ADAM)
    batch = made.place(batches(1)[0])
    hlo = made.step.lower(made.abstract, batch).compile().as_text()
    return list(collectives(hlo, made.mesh))


@pytest.mark.parametrize("name", ["hsdp 2x4", "tensor 4x2", "tensor 1x4", "hybrid 1x4x2"])
def test_collectives_lie_on_their_axes(name):
    degrees = {"fsdp": 1, "tensor": 1} | MESHES[name][1]
    found = compiled_collectives(name)
    sharded = [size // tensor for size, fsdp, tensor in leaves(name) if fsdp > 1]
    for kind, times in [("all-gather", 2), ("reduce-scatter", 1)]:
        over_fsdp = [e.largest for e in found if (e.kind, e.axes) == (kind, ("fsdp",))]
        if degrees["fsdp"] > 1:  # of the parts over tensor, never of whole parameters
            assert len(sharded) <= len(over_fsdp) <= times * len(sharded)
            assert max(over_fsdp) == max(sharded)
    if degrees["tensor"] > 1:
        rows = BATCH // (degrees["data"] * degrees["fsdp"])
        residual = rows * SEQ_LEN * MODEL.width
        over_tensor = [e for e in found if e.axes == ("tensor",)]
        sums = [e.largest for e in over_tensor if e.kind == "all-reduce"]
        assert max(sums) == residual
        # Key/value heads fewer than devices are replicated, so their gradients are put
        # together; the smallest parameter that is split is twice as large as those.
        replicated = MODEL.width * MODEL.width // 2 if degrees["tensor"] > 2 else 0
        gathers = [
            e.largest for e in found if e.kind == "all-gather" and e.axes != ("fsdp",)
        ]
        assert max(gathers, default=0) <= replicated
        assert {e.kind for e in found} <= {"all-reduce", "all-gather", "reduce-scatter"}


BAD = [
    ("tensor", {"data": 1, "tensor": 8}, "model.num_heads 4 is not divisible by "
     "parallel.tensor 8"),
    ("fsdp", {"tensor": 2}, "strategy 'fsdp' has no axis tensor"),
    ("tensor", {"fsdp": 2}, "strategy 'tensor' has no axis fsdp"),
    ("hybrid", {"data": 2, "fsdp": 3, "tensor": 2}, "multiply to 12"),
    ("hybrid", {"data": -1, "fsdp": -1}, "only one degree can be -1"),
]  # fmt: skip


@pytest.mark.parametrize("strategy, degrees, words", BAD)
def test_bad_degrees(strategy, degrees, words):
    with pytest.raises(ValueError, match=words):
        toy_program(strategy, toy_learner(ADAM), **degrees)


def test_what_cannot_be_cut_is_refused():
    model = TransformerConfig(num_heads=4, width=32, mlp_width=30)
    for degree, vocab, words in [
        (4, 64, "hidden width model.mlp_width 30 is not divisible by parallel.tensor 4"),
        (2, 65, "vocabulary size 65 is not divisible by parallel.tensor 2"),
    ]:
        with pytest.raises(ValueError, match=words):
            validate_tensor_dims(model.tensor_dims(vocab), degree)
    with pytest.raises(ValueError, match="says of no parameter"):
        validate_tensor_dims((), 2)
    validate_tensor_dims((), 1)


def test_devices_that_share_a_layer_are_in_one_process(monkeypatch):
    config = ParallelConfig(strategy="tensor", data=2, tensor=4)
    mesh = config.mesh()
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    with pytest.raises(ValueError, match="parallel.tensor 4 does not divide the 2 devices"):
        config.validate(BATCH, mesh)
