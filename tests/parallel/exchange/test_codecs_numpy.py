"""What each codec computes, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallel.exchange.chunks import pack_places, unpack_places
from parallel.exchange.codec import BY_GATHERING, BY_OWNERS, LINEAR, hierarchical
from parallel.exchange.config import CODECS, ExchangeConfig
from parallel.exchange.power_sgd import as_matrix
from parallel.exchange.quantise import Digits, uniform
from parallel.exchange.sparse import largest, num_kept, one_of_each_part, warmup_shares
from tests.parallel.exchange.test_codecs import (
    ARGUMENTS,
    DGC,
    draw,
    initial,
    joined,
    make,
    run,
)

LEVELS = {"int8": 127, "int4": 7, "ternary": 1}
CHUNK_BLOCKS = 3


def aligned(name, mesh="4", seed=0):
    """Draw a tree of whole blocks: 3 in each of 4 chunks."""
    block = ARGUMENTS[name].get("block", 40)
    return draw(mesh, seed, {"kernel": (4, CHUNK_BLOCKS * block)}), block


@pytest.mark.parametrize("name", LEVELS)
def test_rounding_errs_less_than_a_step_of_each_block(name):
    stacked, block = aligned(name)
    total, _ = run(name, "4", stacked)
    x_WBS = joined(stacked).reshape(4, -1, block)
    error_BS = np.abs(joined(total)[0].reshape(-1, block) - x_WBS.sum(0))
    # Each replica errs by less than its step, and the owner by less than the sum's, whose
    # largest element is at most the sum of the replicas' largest. Ternary: 4 shared scales.
    step_B = np.abs(x_WBS).max(2).sum(0) / LEVELS[name]
    if name == "ternary":
        step_B = 2 * np.abs(x_WBS).max((0, 2))
    assert (error_BS < 2 * step_B[:, None] * (1 + 1e-5)).all()
    assert (error_BS.max(1) > step_B / 8).all()


@pytest.mark.parametrize("name", LEVELS)
def test_rounding_without_feedback_is_unbiased(name):
    stacked, block = aligned(name)
    totals = np.stack(
        [
            joined(run(name, "4", stacked, seed=seed, error_feedback="off")[0])[0]
            for seed in range(300)
        ]
    )
    error = totals.mean(0) - joined(stacked).sum(0)
    standard_error = totals.std(0, ddof=1) / np.sqrt(len(totals))
    step_B = np.abs(joined(stacked).reshape(4, -1, block)).max(2).sum(0) / LEVELS[name]
    resolution = np.repeat(step_B, block) * 2.0**-16  # of the noise, in both roundings
    assert (np.abs(error) < 5 * standard_error + 2 * resolution).all()
    assert np.abs(error / (standard_error + resolution)).mean() < 1
    assert np.median(standard_error / np.repeat(step_B, block)) < 0.05


def test_the_sum_of_ternary_gradients_is_exact():
    """Each replica sends -1, 0 or 1 times a shared scale (TernGrad); no more is lost."""
    stacked, block = aligned("ternary")
    total, comm = run("ternary", "4", stacked)
    x_WBS = joined(stacked).reshape(4, -1, block)
    sent_WBS = x_WBS - joined(comm["residual"]).reshape(x_WBS.shape)
    steps_WBS = sent_WBS / np.abs(x_WBS).max((0, 2))[:, None]
    np.testing.assert_allclose(steps_WBS, np.round(steps_WBS), atol=1e-5)
    assert set(np.unique(np.round(steps_WBS))) == {-1, 0, 1}
    np.testing.assert_allclose(
        joined(total)[0].reshape(-1, block), sent_WBS.sum(0), rtol=1e-5, atol=1e-5
    )


def test_replicas_draw_noise_of_their_own():
    x = np.random.default_rng(0).normal(size=(1, 400)).astype(np.float32)
    _, comm = run("int8", "4", {"x": np.repeat(x, 4, axis=0)}, error_feedback="off")
    residual = joined(comm["residual"])
    for w in range(1, 4):
        assert (residual[w] != residual[0])[200:].mean() > 0.3


def test_bfloat16_errs_less_than_half_a_unit_of_its_last_bit():
    stacked = draw("4")
    total, _ = run("bfloat16", "4", stacked)
    error = np.abs(joined(total)[0] - joined(stacked).sum(0))
    bound = 2.0**-8 * np.abs(joined(stacked)).sum(0) * (2 + 2.0**-8)
    assert (error <= bound * (1 + 1e-5)).all() and (error > bound / 3).any()
    rounded = np.asarray(jnp.asarray(joined(total)[0], jnp.bfloat16), np.float32)
    np.testing.assert_array_equal(rounded, joined(total)[0])


def test_sign_is_the_sign_and_mean_of_each_block_twice():
    stacked, block = aligned("sign")
    total, _ = run("sign", "4", stacked)

    def decoded(x):
        return np.where(x >= 0, 1, -1) * np.abs(x).mean(-1, keepdims=True)

    parts_WBS = decoded(joined(stacked).reshape(4, -1, block))
    np.testing.assert_allclose(
        joined(total)[0].reshape(-1, block), decoded(parts_WBS.sum(0)), rtol=1e-5
    )


def test_two_bits_are_the_sign_and_the_nearest_of_two_sizes():
    stacked, block = aligned("int2")
    total, comm = run("int2", "4", stacked)

    def decoded(x):
        size = np.abs(x)
        steps = np.where(size > 1.23 * size.mean(-1, keepdims=True), 3.0, 1.0)
        # One number of least squares for each block.
        scale = [
            np.linalg.lstsq(s[:, None], each, rcond=None)[0]
            for s, each in zip(
                steps.reshape(-1, block), size.reshape(-1, block), strict=True
            )
        ]
        return np.sign(x) * steps * np.reshape(scale, (*x.shape[:-1], 1))

    parts_WBS = decoded(joined(stacked).reshape(4, -1, block))
    np.testing.assert_allclose(
        joined(total)[0].reshape(-1, block), decoded(parts_WBS.sum(0)), rtol=1e-4
    )
    # Max's best four levels leave 0.1175 of the variance of normal numbers.
    normal = np.random.default_rng(0).normal(size=(1, 1 << 14))
    block = normal.size
    left = np.square(normal - decoded(normal)).mean()
    assert 0.1175 < left < 0.125


def test_the_mean_of_large_numbers_does_not_overflow():
    stacked = {"x": np.full((4, 128), 5e37, np.float32)}  # a block's sum would be 1.6e39
    for name in ("int2", "sign", "majority_vote"):
        total, _ = run(name, "4", stacked)
        np.testing.assert_allclose(total["x"], 2e38, rtol=1e-5)


def test_the_majority_settles_signs_and_the_owner_draws():
    stacked = draw(shapes={"kernel": (4, 80)})
    stacked["kernel"][1, 0] = 0  # replica 1 abstains in the first chunk
    total, _ = run("majority_vote", "4", stacked)
    x_WCS = stacked["kernel"]
    signs = np.where(x_WCS >= 0, 1, -1) * (np.abs(x_WCS).max(2, keepdims=True) > 0)
    votes = signs.sum(0)
    own = signs[np.arange(4), np.arange(4)]
    size = np.abs(x_WCS).mean(2).sum(0)[:, None]
    expected = np.where(votes == 0, own, np.sign(votes)) * size
    assert (votes == 0).any() and (np.abs(votes) == 3).any()
    np.testing.assert_allclose(total["kernel"][0], expected, rtol=1e-5)


def test_digits_survive_packing():
    for base, per_byte in [(256, 1), (16, 2), (3, 5), (2, 8)]:
        digits = np.random.default_rng(0).integers(0, base, (3, 4 * per_byte))
        packed = Digits(base, per_byte).pack(jnp.asarray(digits, jnp.uint8))
        assert packed.dtype == np.uint8 and packed.shape == (3, 4)
        np.testing.assert_array_equal(Digits(base, per_byte).unpack(packed), digits)


def test_noise_is_uniform():
    noise = np.asarray(uniform(jax.random.key(0), (10, 10_000)))
    assert 0 < noise.min() < 1e-4 and 1 - 1e-4 < noise.max() < 1
    np.testing.assert_allclose(np.histogram(noise, 10, (0, 1))[0], 10_000, rtol=0.05)
    assert len(np.unique(noise)) > 50_000  # the halves of a word differ


def by_size(x, k):
    return np.sort(np.argsort(-np.abs(x), kind="stable")[:k])


def test_top_k_keeps_the_largest_of_each_replica():
    stacked = draw("4")
    total, comm = run("top_k", "4", stacked)
    x_Wn, expected = joined(stacked), 0
    k = num_kept(x_Wn.shape[1], ARGUMENTS["top_k"]["keep"])
    for x_n, residual_n in zip(x_Wn, joined(comm["residual"]), strict=True):
        kept = np.zeros_like(x_n)
        kept[by_size(x_n, k)] = x_n[by_size(x_n, k)]
        np.testing.assert_array_equal(residual_n, x_n - kept)
        assert (residual_n != x_n).sum() == k
        expected = expected + kept
    np.testing.assert_allclose(joined(total)[0], expected, rtol=1e-5, atol=1e-6)


def test_chunk_top_k_sends_two_sizes_of_the_largest_of_each_chunk():
    """Three chunks, the last one not full, and one with fewer numbers than are chosen."""
    stacked = draw(shapes={"x": (10_000,)})
    stacked["x"][2, 20:4096] = 0
    total, comm = run("chunk_top_k", "4", stacked)
    k, expected = num_kept(4096, ARGUMENTS["chunk_top_k"]["keep"]), 0
    for x_n, residual_n in zip(stacked["x"], joined(comm["residual"]), strict=True):
        sent = np.zeros(3 * 4096)
        for start in range(0, x_n.size, 4096):
            places = by_size(x_n[start : start + 4096], k)
            x = x_n[start + places]
            size = np.abs(x)
            above = size > size.mean()
            size = np.where(above, size[above].mean(), size[~above].mean())
            sent[start + places] = np.sign(x) * size
        sent = sent[: x_n.size]
        drawn = (x_n == 0) & (residual_n != 0)  # zeros that were chosen
        assert drawn.sum() == (k - 20 if (x_n == 0).any() else 0)
        sent[drawn] = -residual_n[drawn]
        np.testing.assert_allclose(residual_n, x_n - sent, rtol=1e-5, atol=1e-5)
        assert np.square(residual_n).sum() < np.square(x_n).sum()
        expected = expected + sent
    np.testing.assert_allclose(joined(total)[0], expected, rtol=1e-5, atol=1e-5)


def test_places_in_a_chunk_have_twelve_bits():
    for num in (1, 2, 7, 4096):
        places = np.random.default_rng(num).integers(0, 4096, num)
        packed = pack_places(jnp.asarray(places))
        assert packed.dtype == np.uint8 and packed.size == 3 * -(-num // 2)
        np.testing.assert_array_equal(unpack_places(packed)[:num], places)


@pytest.mark.parametrize("k", [1, 7, 500, 1000])
def test_largest_against_sorting_with_ties(k):
    rng = np.random.default_rng(0)
    for x in [rng.normal(size=1000), rng.integers(-3, 4, 1000), np.zeros(1000)]:
        x = x.astype(np.float32)
        np.testing.assert_array_equal(
            jax.jit(largest, static_argnums=1)(x, k), by_size(x, k)
        )


def test_nan_is_larger_than_infinity():
    x = jnp.array([1.0, jnp.inf, 3.0, jnp.nan, -jnp.inf, 1e-40])
    np.testing.assert_array_equal(largest(x, 1), [3])
    np.testing.assert_array_equal(largest(x, 3), [1, 3, 4])


def test_random_k_sums_the_same_places_exactly():
    stacked = draw("4")
    total, comm = run("random_k", "4", stacked)
    total_n, exact_n = joined(total)[0], joined(stacked).sum(0)
    places = np.flatnonzero(total_n)
    assert len(places) == num_kept(len(exact_n), ARGUMENTS["random_k"]["keep"])
    np.testing.assert_allclose(total_n[places], exact_n[places], rtol=1e-5, atol=1e-5)
    waiting = np.delete(joined(stacked), places, axis=1)
    np.testing.assert_array_equal(
        np.delete(joined(comm["residual"]), places, axis=1), waiting
    )
    other, _ = run("random_k", "4", stacked, seed=1)
    assert (np.flatnonzero(joined(other)[0]) != places).any()


@pytest.mark.parametrize("num, k", [(10, 10), (23, 5), (7, 1)])
def test_random_places_are_distinct_and_equally_likely(num, k):
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.vmap(lambda key: one_of_each_part(key, num, k))(keys))
    assert (np.diff(drawn, axis=1) > 0).all() and 0 <= drawn.min() and drawn.max() < num
    # Parts differ by an element at most, and so do the chances.
    chances = np.bincount(drawn.ravel(), minlength=num) / len(drawn)
    slack = 5 * np.sqrt(0.25 / len(drawn))
    assert (chances > 1 / -(-num // k) - slack).all()
    assert (chances < 1 / (num // k) + slack).all()


def test_deep_gradient_compression_against_numpy():
    keep, momentum, warmup = (
        ARGUMENTS[DGC][x] for x in ("keep", "momentum", "warmup_steps")
    )
    u_Wn = v_Wn = 0
    comm, counts = None, []
    for step in range(7):
        stacked = draw(seed=step)
        total, comm = run(DGC, "4", stacked, comm)
        u_Wn = momentum * u_Wn + joined(stacked)
        v_Wn = v_Wn + u_Wn
        share = (warmup_shares(keep) + [keep] * 7)[step * 4 // warmup]
        k, expected = num_kept(u_Wn.shape[1], share), 0
        for w in range(4):
            sent = by_size(v_Wn[w], k)
            part = np.zeros_like(v_Wn[w])
            part[sent] = v_Wn[w, sent]
            u_Wn[w, sent] = v_Wn[w, sent] = 0
            expected = expected + part
        counts.append(k)
        np.testing.assert_allclose(joined(total)[0], expected, rtol=1e-5, atol=1e-5)
        kept = comm["codec"]
        np.testing.assert_allclose(kept.unsent, v_Wn, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(kept.momentum, u_Wn, rtol=1e-5, atol=1e-5)
    assert counts[:5] == sorted(counts[:5], reverse=True) and len(set(counts)) == 5


def without_feedback(comm):
    """Keep the codec's state alone, not what the last step lost."""
    if comm is None:
        return None
    return comm | {"residual": jax.tree.map(np.zeros_like, comm["residual"])}


def low_rank(rank, num=4, seed=0):
    rng = np.random.default_rng(seed)
    # The replicas share the space of the shorter side, to which the factor P belongs.
    left, right = rng.normal(size=(num, 30, rank)), rng.normal(size=(rank, 20))
    return {"kernel": (left @ right).astype(np.float32)}


def test_power_sgd_is_exact_for_matrices_of_its_rank():
    stacked = low_rank(2)
    total, comm = run("power_sgd", "4", stacked)
    np.testing.assert_allclose(
        total["kernel"][0], stacked["kernel"].sum(0), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(comm["residual"]["kernel"], 0, atol=1e-4)


def test_power_sgd_projects_on_orthonormal_rows():
    """Only of an orthogonal projection is the rest orthogonal to the total."""
    stacked = draw("4", shapes={"kernel": (30, 20)})
    total, _ = run("power_sgd", "4", stacked)
    total, exact = total["kernel"][0].astype(np.float64), stacked["kernel"].sum(0)
    assert np.linalg.matrix_rank(total, tol=1e-3) == 2
    scale = np.linalg.norm(total) * np.linalg.norm(exact)
    np.testing.assert_allclose((exact - total) @ total.T, 0, atol=1e-6 * scale)


@pytest.mark.parametrize("size", [1, 1e25, 1e-25])
def test_power_sgd_starts_from_the_last_factors(size):
    stacked, errors = draw("4", shapes={"kernel": (30, 20)}), []
    exact, comm = stacked["kernel"].sum(0), None
    stacked = {"kernel": stacked["kernel"] * np.float32(size)}
    for _ in range(12):
        total, comm = run("power_sgd", "4", stacked, without_feedback(comm))
        errors.append(np.linalg.norm(total["kernel"][0] / size - exact))
    best = np.sqrt((np.linalg.svd(exact, compute_uv=False)[2:] ** 2).sum())
    assert errors[0] > 1.05 * best and errors[1] < errors[0]
    assert best * (1 - 1e-5) < errors[-1] < 1.01 * best


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_power_sgd_recovers_from_a_step_without_a_gradient(value):
    stacked = low_rank(2)
    empty = jax.tree.map(lambda x: np.full_like(x, value), stacked)
    _, comm = run("power_sgd", "4", empty)
    for _ in range(2):
        total, comm = run("power_sgd", "4", stacked, without_feedback(comm))
    np.testing.assert_allclose(
        total["kernel"][0], stacked["kernel"].sum(0), rtol=1e-4, atol=1e-4
    )


def test_power_sgd_takes_each_layer_of_a_stack_for_a_matrix():
    layers = draw("4", shapes={"0": (30, 20), "1": (30, 20)})
    stacked = {"scanned_layers": np.stack([layers["0"], layers["1"]], 1)}
    total, comm = run("power_sgd", "4", stacked)
    assert comm["codec"][0].shape[1:] == (2, 30, 2)
    for layer in (0, 1):
        found = total["scanned_layers"][0, layer].astype(np.float64)
        assert np.linalg.matrix_rank(found, tol=1e-3) == 2
        exact = stacked["scanned_layers"][:, layer].sum(0)
        scale = np.linalg.norm(found) * np.linalg.norm(exact)
        np.testing.assert_allclose((exact - found) @ found.T, 0, atol=1e-6 * scale)


def test_power_sgd_leaves_small_leaves_whole():
    stacked = draw("4")
    total, comm = run("power_sgd", "4", stacked)
    assert [q.shape[1:] for q in comm["codec"]] == [
        (1, 20, 2), (1, 24, 2),  # conv and kernel
    ]  # fmt: skip
    np.testing.assert_allclose(
        total["bias"][0], stacked["bias"].sum(0), rtol=1e-5, atol=1e-5
    )
    assert not comm["residual"]["bias"].any()
    exact = {"bias": stacked["bias"]}
    total, comm = run("power_sgd", "4", exact)
    assert comm["codec"] == []
    np.testing.assert_allclose(total["bias"][0], exact["bias"].sum(0), rtol=1e-5, atol=1e-5)


def test_leaves_fold_into_the_squarest_matrix():
    for shape, matrix in {
        (): (1, 1), (5,): (1, 5), (4, 6): (4, 6), (3, 3, 8, 9): (9, 72),
        (64, 4, 16): (64, 64), (4, 16, 64): (64, 64), (2, 3, 100): (6, 100),
    }.items():  # fmt: skip
        assert as_matrix(shape) == matrix


@pytest.mark.parametrize("name", CODECS)
def test_state_comes_from_shapes_and_is_that_of_arrays(name):
    stacked = draw()
    state, _ = initial(make(name), stacked)
    after = run(name, "4", stacked)[1]["codec"]
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype


def test_what_a_codec_travels_by():
    for codec in map(make, CODECS):
        assert codec.linear == (codec.algorithms == LINEAR)
        if codec.linear:
            with pytest.raises(ValueError, match="hierarchical"):
                hierarchical(codec, 4)
        else:
            assert codec.algorithms in (BY_OWNERS, BY_GATHERING)
            assert hierarchical(codec, 4).algorithms == ("hierarchical",)


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        ("int8", {"block": 1}, "int8 .* 1 .* 2"),
        ("int4", {"block": 33}, "int4 .* 33 .* 2"),
        ("ternary", {"block": 256}, "256 .* 10"),
        ("sign", {"block": 12}, "12 .* 8"),
    ],
)
def test_bad_arguments_are_refused(name, arguments, words):
    with pytest.raises(ValueError, match=words):
        CODECS[name](ExchangeConfig(**arguments))
