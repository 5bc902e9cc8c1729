"""Attention's kernels are equal in values and gradients, and each platform has its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm.models.attention import attend, choose_kernel, query_blocks
from parallel.mesh import data_mesh, device_mesh, knowing


def inputs(time, heads=4, kv_heads=4, width=8, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(time), 4)
    shapes = [(2, time, n, width) for n in (heads, kv_heads, kv_heads, heads)]
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


def values_and_gradients(kernel, q, k, v, dy, segments, window=0):
    def run(q, k, v, dy):
        # A function of its own, like a layer: nothing of its trace may leave it.
        y, pull = jax.vjp(jax.jit(lambda *x: attend(*x, segments, kernel, window)), q, k, v)
        return y, *pull(dy)

    return jax.jit(run)(q, k, v, dy)


def segments_of(time):
    """Documents that end off the blocks' borders, then padding."""
    row = jnp.searchsorted(jnp.array([time // 5, time // 2, time - 3]), jnp.arange(time))
    return jnp.stack([row + 1, jnp.where(jnp.arange(time) < time - 3, 1, 0)])


def assert_equal_to_full(kernel, time, segmented, kv_heads, window):
    q, k, v, dy = inputs(time, kv_heads=kv_heads)
    segments = segments_of(time) if segmented else None
    ours = values_and_gradients(kernel, q, k, v, dy, segments, window)
    full = values_and_gradients("xla", q, k, v, dy, segments, window)
    for a, b in zip(ours, full, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(
    "time, segmented, kv_heads, window",
    [(12, False, 4, 0), (64, True, 2, 5), (130, True, 1, 0), (330, False, 2, 70)],
)
def test_blockwise_equals_full(time, segmented, kv_heads, window):
    assert_equal_to_full("blockwise", time, segmented, kv_heads, window)


# Interpreted, a kernel is slow: one block, then three with segments and shared keys.
@pytest.mark.parametrize(
    "time, segmented, kv_heads, window", [(128, False, 4, 0), (384, True, 2, 100)]
)
def test_splash_equals_full(time, segmented, kv_heads, window):
    assert_equal_to_full("splash", time, segmented, kv_heads, window)


def test_a_window_is_the_last_keys():
    q, k, v, _ = inputs(5, heads=1, kv_heads=1)
    y = jax.jit(lambda *x: attend(*x, None, "xla", 2))(q, k, v)
    last = (x[:, 3:] for x in (q, k, v))
    pair = jax.jit(lambda *x: attend(*x, None, "xla"))(*last)
    np.testing.assert_allclose(y[:, 4], pair[:, 1], rtol=1e-6)


def test_splash_is_split_by_rows_where_the_compiler_would_have_to():
    mesh = data_mesh(2)
    q, k, v, _ = inputs(128)
    segments = segments_of(128)
    rows = NamedSharding(mesh, P("data"))
    placed = [jax.device_put(x, rows) for x in (q, k, v, segments)]
    run = jax.jit(knowing(mesh, lambda *x: attend(*x, "splash")))
    traced = run.trace(*placed)
    assert "shard_map" in str(traced.jaxpr)
    assert "all-gather" not in traced.lower().compile().as_text()
    np.testing.assert_allclose(
        run(*placed), attend(q, k, v, segments, "xla"), rtol=1e-5, atol=1e-6
    )


def test_splash_has_its_logarithms_before_its_output_is_used():
    """Else a compiler may keep the kernel's 128 copies of them for the backward pass."""
    q, k, v, _ = inputs(128)
    attention = jax.make_jaxpr(
        lambda *x: jax.vjp(lambda *x: attend(*x, None, "splash"), *x)
    )(q, k, v).jaxpr
    (barrier,) = (
        eqn for eqn in attention.eqns if eqn.primitive.name == "optimization_barrier"
    )
    batch, time, heads, _ = q.shape
    logarithms = (var for var in barrier.outvars if var.aval.shape == (batch, heads, time))
    assert attention.outvars[0] in barrier.outvars
    assert next(logarithms) in attention.outvars


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_splash_is_split_by_heads_over_tensor(kv_heads):
    """Inside a shard_map over rows heads are left to split; two of keys are repeated."""
    mesh = device_mesh({"data": 2, "tensor": 4})
    q, k, v, dy = inputs(128, kv_heads=kv_heads)
    segments = segments_of(128)

    def run(segments, *arrays):
        return values_and_gradients("splash", *arrays, segments)

    spread = jax.shard_map(
        run,
        mesh=mesh,
        axis_names={"data"},
        in_specs=P("data"),
        out_specs=P("data"),
        check_vma=False,
    )
    ours = jax.jit(spread)(segments, q, k, v, dy)
    full = values_and_gradients("xla", q, k, v, dy, segments)
    for a, b in zip(ours, full, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_blockwise_keeps_its_type_and_computes_in_float32():
    arrays = inputs(70, dtype=jnp.bfloat16)
    ours = values_and_gradients("blockwise", *arrays, None)
    wide = values_and_gradients("xla", *(x.astype(jnp.float32) for x in arrays), None)
    for a, b in zip(ours, wide, strict=True):
        assert a.dtype == jnp.bfloat16
        # Results are rounded to 8 bits, and so is y, which the gradients are made with.
        scale = np.abs(b).max()
        np.testing.assert_allclose(np.float32(a) / scale, b / scale, atol=2**-8)


def test_huge_scores_do_not_overflow():
    q, k, v, dy = inputs(70)
    ours = values_and_gradients("blockwise", 3e3 * q, 3e3 * k, v, dy, None)
    assert all(jnp.isfinite(x).all() for x in ours)
    np.testing.assert_allclose(ours[0][:, 0], v[:, 0], rtol=1e-6)  # one key: its value


def test_blocks_cover_the_queries():
    for time, num in [(1, 1), (64, 1), (65, 2), (512, 8), (4096, 8)]:
        blocks = query_blocks(time)
        assert len(blocks) == num
        covered = [i for start, end in blocks for i in range(start, end)]
        assert covered == list(range(time))


def test_no_square_array_outlives_its_block():
    time = 512
    q, k, v, _ = inputs(time, heads=1, kv_heads=1)
    pull = jax.eval_shape(
        lambda *x: jax.vjp(lambda *x: attend(*x, None, "blockwise"), *x)[1], q, k, v
    )
    assert jax.tree.leaves(pull)
    assert max(x.size for x in jax.tree.leaves(pull)) <= q.size


def test_kernel_by_platform():
    for backend, dtype, width, time, kernel in [
        ("cpu", jnp.float32, 32, 256, "blockwise"),
        ("cpu", jnp.bfloat16, 64, 256, "blockwise"),
        ("gpu", jnp.bfloat16, 64, 256, "cudnn"),
        ("gpu", jnp.float16, 128, 256, "cudnn"),
        ("gpu", jnp.bfloat16, 256, 256, "xla"),
        ("gpu", jnp.bfloat16, 12, 256, "xla"),
        ("gpu", jnp.float32, 64, 256, "xla"),
        ("tpu", jnp.bfloat16, 128, 256, "splash"),
        ("tpu", jnp.float32, 64, 384, "splash"),
        ("tpu", jnp.float16, 128, 256, "xla"),
        ("tpu", jnp.bfloat16, 128, 200, "xla"),
    ]:
        assert choose_kernel("auto", jnp.dtype(dtype), width, time, backend) == kernel
        assert choose_kernel("xla", jnp.dtype(dtype), width, time, backend) == "xla"


def test_a_kernel_that_cannot_be_had_is_refused():
    for kernel, backend, dtype, width, time in [
        ("cudnn", "cpu", jnp.bfloat16, 64, 256),
        ("cudnn", "gpu", jnp.float32, 64, 256),
        ("cudnn", "gpu", jnp.bfloat16, 256, 256),
        ("splash", "gpu", jnp.bfloat16, 64, 256),
        ("splash", "tpu", jnp.bfloat16, 64, 200),
        ("xla", "cpu", jnp.float16, 64, 256),
    ]:
        with pytest.raises(ValueError, match=f"attention={kernel} .* {width} .* {time} "):
            choose_kernel(kernel, dtype, width, time, backend)
