"""Distillation: the loss on paper, its limits, and a cache that loses and mixes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from lm.compress.distil import Cache, DistilConfig, Said, row_hashes, taught, top_logits
from lm.losses import Teacher, cross_entropy
from tests.parallel.toy import VOCAB, batches, toy_task

B, T, V = 3, 4, 7


def drawn(shape, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def loss(share, heat, ids=None, said=None, **more):
    """Return the objective of fixed logits, and the plain loss."""
    logits, labels = drawn((B, T, V), 0), np.random.default_rng(1).integers(0, V, (B, T))
    mask = np.random.default_rng(2).random((B, T)) < 0.8
    teacher = None
    if said is not None:
        teacher = Teacher(ids, said, jnp.full(B, share), jnp.full(B, heat))
    objective, sums = cross_entropy(
        logits, lambda x: x, labels, mask, teacher=teacher, **more
    )
    return objective, sums["loss"], (logits, labels, mask)


def all_ids() -> np.ndarray:
    return np.broadcast_to(np.arange(V, dtype=np.int32), (B, T, V))


def test_the_objective_is_the_mixture_on_paper():
    said, share, heat = drawn((B, T, V), 3), 0.3, 2.5
    found, plain, (logits, labels, mask) = loss(share, heat, all_ids(), said)
    p, q = softmax(said / heat, -1), log_softmax(logits / heat, -1)
    apart = (p * (np.log(p) - q)).sum(-1)
    labelled = -np.take_along_axis(log_softmax(logits, -1), labels[..., None], -1)[..., 0]
    expected = ((1 - share) * labelled + share * heat**2 * apart)[mask].sum()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(plain, labelled[mask].sum(), rtol=1e-5)
    weights = drawn((B, T), 5) ** 2
    weighted = loss(share, heat, all_ids(), said, weights_BT=weights)[0]
    terms = weights * ((1 - share) * labelled + share * heat**2 * apart)
    np.testing.assert_allclose(weighted, terms[mask].sum(), rtol=1e-5)
    chunked = loss(share, heat, all_ids(), said, chunk=2)[0]
    np.testing.assert_allclose(chunked, found, rtol=1e-6)


def test_limits():
    """No share of the teacher is no teacher; the student's own logits pull nowhere; the
    largest logits in any order, if they are all, are all."""
    said = drawn((B, T, V), 3)
    plain = loss(0, 1)[0]
    np.testing.assert_array_equal(loss(0.0, 2.0, all_ids(), said)[0], plain)
    own, _, (logits, *_) = loss(1.0, 2.0, all_ids(), drawn((B, T, V), 0))
    np.testing.assert_allclose(own, 0, atol=1e-5)
    order = np.argsort(-said, -1).astype(np.int32)
    sorted_ = np.take_along_axis(said, order, -1)
    whole = loss(0.4, 2.0, all_ids(), said)[0]
    np.testing.assert_allclose(loss(0.4, 2.0, order, sorted_)[0], whole, rtol=1e-6)
    unnamed = loss(0.4, 2.0, order[..., :0], said)[0]  # all, in the order of their tokens
    np.testing.assert_allclose(unnamed, whole, rtol=1e-6)
    few = loss(0.4, 2.0, order[..., :2], sorted_[..., :2])[0]
    assert abs(few - whole) > 1e-3


def test_a_task_reads_the_teacher_of_its_batch():
    """Through the model: share 0 is plain training; its own gradient at share 1 is 0."""
    task, batch = toy_task(), batches(1)[0]
    params = jax.jit(task.init)(jax.random.key(0))
    said = jax.device_get(jax.jit(lambda: top_logits(task, params, batch, 0, VOCAB))())

    @jax.jit
    def gradient(batch):
        return jax.grad(lambda p: task.loss(p, batch, None)[0])(params)

    none, own = (
        gradient(taught(batch, said, DistilConfig(share=share))) for share in (0.0, 1.0)
    )
    plain = gradient(batch)
    for a, b, c in zip(*map(jax.tree.leaves, (none, plain, own)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
        assert np.abs(c).max() < 1e-4 * np.abs(b).max()


def test_a_cache_gives_back_each_row_after_a_kill_and_no_other_teachers(tmp_path):
    batch, folder = batches(1)[0], tmp_path / "cache"
    keys = row_hashes(batch)
    assert len(set(keys)) == len(keys)  # all rows differ
    assert row_hashes({k: v[::-1] for k, v in batch.items()}) == keys[::-1]
    said = Said(
        np.random.default_rng(0).integers(0, 64, (16, 16, 3), np.int32),
        drawn((16, 16, 3), 6),
    )
    cache = Cache(folder, "a")
    assert cache.read(keys[:1], (16, 3, 3)) is None
    cache.write(keys[:10], Said(*(x[:10] for x in said)))
    cache.write(keys[5:], Said(*(x[5:] for x in said)))
    every = Said(np.zeros((16, 16, 0), np.int32), drawn((16, 16, 5), 7))  # all logits
    cache.write(keys, every)
    for a, b in zip(cache.read(keys, (16, 0, 5)), every, strict=True):
        np.testing.assert_array_equal(a, b)
    file = folder / "16x3x3.bin"
    with file.open("ab") as stream:
        stream.write(b"a record that a killed process left unfinished")
    again = Cache(folder, "a")
    for order in (range(16), [7, 3, 3, 12]):
        found = again.read([keys[i] for i in order], (16, 3, 3))
        for a, b in zip(found, said, strict=True):
            np.testing.assert_array_equal(a, b[list(order)])
    assert file.stat().st_size == 16 * (16 + 2 * 4 * 16 * 3)
    with pytest.raises(ValueError, match="teacher a, and this one is b"):
        Cache(folder, "b")
