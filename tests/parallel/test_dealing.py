"""Laws of whole matrices that are dealt to devices: as one device, bytes, and back."""

import functools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.optim import OptimConfig, optimizer
from parallel.cost.closed_forms import cut_of, zero1_whole_bytes
from parallel.cost.ledger import collectives
from parallel.forms.dealing import whole_matrices
from parallel.layout import MIN_SHARDED_SIZE, bytes_per_device
from parallel.mesh import data_mesh
from parallel.program import TrainState
from tests.parallel.toy import (
    STEPS,
    assert_equal,
    batches,
    oracle_state,
    toy_learner,
    toy_program,
    toy_task,
    train,
)

# Neither degree divides the numbers of matrices of the shapes.
CASES = {
    "layers apart": (4, {"bias": False}),
    "scanned": (8, {"bias": False, "scan_layers": True, "num_layers": 3}),
}


@functools.cache
def trained(case):
    """Train with Muon; return the program, its last state, the parameters and losses."""
    degree, model = CASES[case]
    config = OptimConfig(name="muon", learning_rate=0.03, schedule="constant")
    tx = optimizer(config, STEPS, toy_task(**model).hidden)
    program = toy_program("zero1_whole", toy_learner(tx, **model), data=degree)
    return tx, program, train(program)


def leaves_of(model):
    """Return the shapes of the matrices inside layers, one by one, and of other leaves."""
    task = toy_task(**model)
    matrices, others = [], []
    for path, x in jax.tree.leaves_with_path(jax.eval_shape(task.init, jax.random.key(0))):
        num = x.shape[:1] if path[0].key == "scanned_layers" else ()
        shape = x.shape[len(num) :]
        if path[0].key in ("layers", "scanned_layers") and len(shape) == 2:
            matrices += [shape] * math.prod(num)
        else:
            others.append((shape, math.prod(num)))
    return matrices, others


@pytest.mark.parametrize("case", CASES)
def test_muon_on_dealt_matrices_is_muon_on_one_device(case):
    """And the optimizer's state that is saved is that of one device."""
    degree, model = CASES[case]
    matrices, _ = leaves_of(model)
    assert any(num % degree for num in Counter(matrices).values())
    tx, program, (state, params, losses) = trained(case)
    expected, opt, expected_losses = oracle_state(toy_task(**model), tx, STEPS, batches)
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-5)
    assert_equal(params, expected, rtol=1e-3)

    saved = program.portable(state)
    assert jax.tree.structure(saved.opt) == jax.tree.structure(opt)
    assert_equal(jax.device_get(saved.opt), jax.device_get(opt), rtol=1e-3)
    again = program.adopt(saved)
    for tree in ("params", "opt"):
        found, before = (jax.device_get(getattr(s, tree)) for s in (again, state))
        jax.tree.map(np.testing.assert_array_equal, found, before)


@pytest.mark.parametrize("case", CASES)
def test_bytes_sent_and_kept(case):
    degree, model = CASES[case]
    matrices, others = leaves_of(model)
    rounds = {shape: -(-num // degree) for shape, num in Counter(matrices).items()}
    own = sum(num * math.prod(shape) for shape, num in rounds.items())
    sizes = [(num, math.prod(shape)) for shape, num in others]
    sharded = sum(num * n // degree for num, n in sizes if n >= MIN_SHARDED_SIZE)
    small = sum(num * n for num, n in sizes if n < MIN_SHARDED_SIZE)
    _, program, _ = trained(case)
    # One momentum for matrices; two moments for the others, which Adam updates.
    moments = [
        x
        for path, x in jax.tree.leaves_with_path(program.abstract.opt)
        if {"mu", "nu"} & {getattr(entry, "name", None) for entry in path}
    ]
    assert bytes_per_device(moments) == 4 * (own + 2 * (sharded + small))

    batch = program.place(batches(1)[0])
    hlo = program.step.lower(program.abstract, batch).compile().as_text()
    found = Counter()
    for entry in collectives(hlo, program.mesh):
        found[entry.kind] += entry.elements
    assert found.keys() == {"reduce-scatter", "all-gather", "all-reduce"}
    assert found["reduce-scatter"] == found["all-gather"] == degree * (own + sharded)
    assert 0 < found["all-reduce"] - small < 100  # sums of the loss, parts of the norm
    task = toy_task(**model)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    cut = cut_of(task, shapes, jax.tree.map(jnp.asarray, batches(1)[0]))
    elements = degree * (own + sharded) + small
    assert zero1_whole_bytes(None, shapes, data_mesh(degree), cut) == pytest.approx(
        2 * 4 * elements * (degree - 1) / degree
    )


def test_a_model_without_matrices_inside_layers_is_refused():
    learner = toy_learner(optimizer(OptimConfig(), 1))
    learner = learner._replace(task=learner.task._replace(hidden=()))
    with pytest.raises(ValueError, match="zero1_whole.* this model has none"):
        toy_program("zero1_whole", learner, data=2)


def test_an_encoder_and_a_decoder_with_layers_of_the_same_names():
    """Their paths end alike; each keeps its own moments, there and back."""
    names = ("layers", "encoder", "other")

    def layers(key):
        kernels = jax.random.normal(key, (2, 8, 4))
        return {i: {"kernel": kernels[i]} for i in range(2)}

    def init(key):
        keys = jax.random.split(key, 3)
        encoder, other = ({"layers": layers(k)} for k in keys[1:])
        return dict(zip(names, (layers(keys[0]), encoder, other), strict=True))

    tx = optimizer(OptimConfig(name="muon"), 2, names[:2])
    learner = toy_learner(tx)
    task = learner.task._replace(init=init, hidden=names[:2])
    form = whole_matrices(learner._replace(task=task), 8)
    params = init(jax.random.key(0))
    # After one update the moments of each parameter tell which one it is.
    _, usual = tx.update(params, tx.init(params), params, value=0.0)
    dealt = form.to(params)
    assert dealt["whole_matrices"]["each_8x4"].shape == (8, 8, 4)
    jax.tree.map(np.testing.assert_array_equal, form.back(dealt), params)
    start = form.learner.optimizer.init(params)
    _, opt = tx.update(dealt, start, dealt, value=0.0)
    state = TrainState(0, params, opt, (), ())
    saved = form.portable(state)
    assert_equal(saved.opt, usual, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, form.adopt(saved).opt, opt)
