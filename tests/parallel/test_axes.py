"""Laws 1 and 6 for layouts over several mesh axes: data, fsdp and tensor."""

import functools

import jax
import numpy as np
import pytest

from lm.models.transformer.config import TransformerConfig
from parallel.config import ParallelConfig
from parallel.cost.ledger import collectives
from parallel.layout import (
    MIN_SHARDED_SIZE,
    bytes_per_device,
    tensor_dim,
    validate_tensor_dims,
)
from tests.parallel.toy import (
    BATCH,
    MODEL,
    SEQ_LEN,
    SGD,
    STEPS,
    assert_equal,
    assert_overflow_skips,
    batches,
    one_device,
    oracle,
    toy_learner,
    toy_program,
    train,
    weighted_batches,
    whole_matrix_optimizer,
)

MESHES = {
    "hsdp 2x4": ("hsdp", {"data": 2, "fsdp": 4}),
    "tensor 4x2": ("tensor", {"data": 4, "tensor": 2}),
    "tensor 1x4": ("tensor", {"data": 1, "tensor": 4}),  # 4 > 2 key/value heads
    "hybrid 2x2x2": ("hybrid", {"data": 2, "fsdp": 2, "tensor": 2}),
    "hybrid 2x4x1": ("hybrid", {"data": 2, "fsdp": 4, "tensor": 1}),
}
CUBE = "hybrid 2x2x2"


@functools.cache
def program(name, tx=SGD, accumulation=1, **learner):
    strategy, degrees = MESHES[name]
    return toy_program(
        strategy, toy_learner(tx, **learner), accumulation=accumulation, **degrees
    )


def assert_trains_as_one_device(name, accumulation=1, batches=batches, **model):
    made = program(name, accumulation=accumulation, **model)
    _, params, losses = train(made, batches=batches)
    expected, expected_losses = one_device(batches, **model)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_equal(params, expected)


@pytest.mark.parametrize("name", MESHES)
def test_parameters_equal_one_device(name):
    assert_trains_as_one_device(name)


def test_accumulation_is_exact_with_dropout_and_weights():
    assert_trains_as_one_device(CUBE, 2, weighted_batches, dropout=0.2)


def test_overflow_skips_the_step_on_every_device():
    assert_overflow_skips(program(CUBE, compute="float16"))


@pytest.mark.parametrize("model", [
    {"scan_layers": True, "num_layers": 2, "remat": "full"},
    # Without rotary positions a bias of the keys changes nothing: its gradient is noise.
    {"tied": True, "loss_chunk": 4, "positions": "learned", "bias": False},
    {"activation": "gelu", "norm": "layernorm", "num_kv_heads": 0, "attention": "xla"},
], ids=["scanned", "tied", "gpt2"])  # fmt: skip
def test_other_models_on_three_axes(model):
    assert_trains_as_one_device(CUBE, **model)


def test_muon_orthogonalises_whole_matrices():
    tx = whole_matrix_optimizer("muon", 0.03, STEPS)
    _, _, losses = train(program(CUBE, tx))
    np.testing.assert_allclose(losses, oracle(tx, STEPS)[1], rtol=2e-5)


def leaves(name):
    """Return of each parameter its size and the devices that it is cut over, by axis."""
    degrees = {"fsdp": 1, "tensor": 1} | MESHES[name][1]
    learner = toy_learner(SGD)
    shapes = jax.eval_shape(learner.task.init, jax.random.key(0))
    result = []
    for path, x in jax.tree.leaves_with_path(shapes):
        split = tensor_dim(path, x.shape, learner.task.tensor_dims, degrees["tensor"])
        tensor = 1 if split is None else degrees["tensor"]
        fsdp = degrees["fsdp"] if x.size >= MIN_SHARDED_SIZE else 1
        result.append((x.size, fsdp, tensor))
    return result


@pytest.mark.parametrize("name", MESHES)
def test_state_bytes_per_device(name):
    state = program(name).init(jax.random.key(0))
    params = sum(4 * size // (fsdp * tensor) for size, fsdp, tensor in leaves(name))
    assert bytes_per_device(state.params) == params
    assert bytes_per_device(state.opt) == params  # the momentum
    first = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state.params)]
    assert sum(first) == params


def compiled_collectives(name):
    made = program(name)
    batch = made.place(batches(1)[0])
    hlo = made.step.lower(made.abstract, batch).compile().as_text()
    return list(collectives(hlo, made.mesh))


@pytest.mark.parametrize("name", ["hsdp 2x4", "tensor 4x2", "tensor 1x4", CUBE])
def test_collectives_lie_on_their_axes(name):
    degrees = {"fsdp": 1, "tensor": 1} | MESHES[name][1]
    found = compiled_collectives(name)
    sharded = [size // tensor for size, fsdp, tensor in leaves(name) if fsdp > 1]
    for kind, times in [("all-gather", 2), ("reduce-scatter", 1)]:
        over_fsdp = [e.elements for e in found if (e.kind, e.axes) == (kind, ("fsdp",))]
        # Of the parts over tensor, never of whole parameters.
        assert sum(sharded) <= sum(over_fsdp) <= times * sum(sharded)
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
    ("tensor", {"data": 1, "tensor": 8}, "num_heads 4 .*tensor 8"),
    ("fsdp", {"tensor": 2}, "'fsdp' .*tensor"),
    ("tensor", {"fsdp": 2}, "'tensor' .*fsdp"),
    ("hybrid", {"data": 2, "fsdp": 3, "tensor": 2}, "12.* 8 "),
    ("hybrid", {"data": -1, "fsdp": -1}, "-1"),
]


@pytest.mark.parametrize("strategy, degrees, words", BAD)
def test_bad_degrees(strategy, degrees, words):
    with pytest.raises(ValueError, match=words):
        toy_program(strategy, toy_learner(SGD), **degrees)


def test_what_cannot_be_cut_is_refused():
    model = TransformerConfig(num_heads=4, width=32, mlp_width=30)
    for degree, vocab, words in [
        (4, 64, "mlp_width 30 .*tensor 4"),
        (2, 65, "vocabulary size 65 .*tensor 2"),
    ]:
        with pytest.raises(ValueError, match=words):
            validate_tensor_dims(model.tensor_dims(vocab), degree)
    with pytest.raises(ValueError, match="parallel.tensor is 2"):
        validate_tensor_dims((), 2)
    validate_tensor_dims((), 1)


def test_devices_that_share_a_layer_are_in_one_process(monkeypatch):
    config = ParallelConfig(strategy="tensor", data=2, tensor=4)
    mesh = config.mesh()
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    with pytest.raises(ValueError, match="tensor 4 .* 2 devices"):
        config.validate(BATCH, mesh)
