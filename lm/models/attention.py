"""Attention as functions: kernels by platform, with or without a sliding window.

Shapes: B batch, T queries, S keys, N heads, G key/value heads, R = N / G heads that share a
key/value head, K head width. With a window W, a query sees the last W keys up to its own
position; a window of 0 is all of them.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as splash_masks,
)
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from lm.models.layers import platform

BLOCK = 64  # the fewest queries in a block
MAX_BLOCKS = 8
LANES = 128  # lanes of a TPU's vector unit; splash takes multiples of it
HEADS_AXIS = "tensor"  # heads are split over this axis of the mesh, if it has the axis
MASKED = -1e30  # finite: the gradient of an infinity is not a number


def attend(q_BTNK, k_BTGK, v_BTGK, segments_BT, wanted: str, window: int = 0) -> jax.Array:
    """Return y_BTNK: causal attention, inside the segments of each row."""
    num_queries, _, width = q_BTNK.shape[1:]
    kernel = choose_kernel(wanted, q_BTNK.dtype, width, num_queries, platform())
    if kernel == "blockwise":
        return blockwise_attention(window, q_BTNK, k_BTGK, v_BTGK, segments_BT)
    if kernel == "splash":
        whole = split_rows_and_heads(partial(splash_attention, window))
        return whole(q_BTNK, k_BTGK, v_BTGK, segments_BT)
    whole = partial(library_attention, kernel, window)
    if kernel == "cudnn" and HEADS_AXIS in axes_left_to_the_compiler():
        whole = split_rows_and_heads(whole)
    return whole(q_BTNK, k_BTGK, v_BTGK, segments_BT)


def library_attention(
    kernel: str, window: int, q_BTNK, k_BTGK, v_BTGK, segments_BT
) -> jax.Array:
    mask_B1TT = None
    if segments_BT is not None:
        mask_B1TT = (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        q_BTNK,
        k_BTGK,
        v_BTGK,
        mask=mask_B1TT,
        is_causal=True,
        local_window_size=(window - 1, 0) if window else None,
        implementation=kernel,
    )


def choose_kernel(
    wanted: str, dtype, head_width: int, num_queries: int, backend: str
) -> str:
    """Return the kernel that `wanted` means on this platform.

    `auto` is our blockwise attention on a CPU, cuDNN's flash attention on a GPU, and JAX's
    Pallas kernel "splash" on a TPU. If that kernel does not take such arrays, `auto` is
    "xla". Raises ValueError for any other kernel that does not take them.
    """
    half = dtype == jnp.float16
    narrow = head_width % 8 == 0 and head_width <= 128
    takes = {
        "blockwise": True,
        "xla": not (half and backend == "cpu"),
        "cudnn": backend == "gpu" and (half or dtype == jnp.bfloat16) and narrow,
        "splash": backend in ("tpu", "cpu") and not half and num_queries % LANES == 0,
    }
    own = {"cpu": "blockwise", "gpu": "cudnn", "tpu": "splash"}.get(backend, "xla")
    if wanted == "auto":
        return own if takes[own] else "xla"
    if not takes[wanted]:
        raise ValueError(
            f"model.attention={wanted} takes no {jnp.dtype(dtype).name} with head width "
            f"{head_width} and data.seq_len {num_queries} on a {backend}; give auto. "
            "cudnn is for GPUs, 16 bits and head widths up to 128 that 8 divides; splash "
            f"for TPUs (slowly, CPUs), no float16, lengths that {LANES} divides; xla not "
            "for float16 on CPUs"
        )
    return wanted


def splash_rows(window: int, q_BTNK, k_BTGK, v_BTGK, segments_BT) -> jax.Array:
    """Return y_BTNK by JAX's Pallas kernel for TPUs; on a CPU it is interpreted."""
    num_queries, num_heads, width = q_BTNK.shape[1:]
    block = next(b for b in (512, 256, LANES) if num_queries % b == 0)
    shape = num_queries, num_queries
    mask = splash_masks.CausalMask(shape)
    if window:
        mask = splash_masks.LocalMask(shape, (window - 1, 0), offset=0)
    kernel = splash.make_splash_mha(
        splash_masks.MultiHeadMask([mask] * num_heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(
            **{
                name: block
                for name in (
                    "block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq",
                    "block_kv_dq",
                )
            }
        ),
        interpret=platform() == "cpu",
    )  # fmt: skip

    def one_row(q_TNK, k_TGK, v_TGK, segments_T) -> jax.Array:
        ids = None if segments_T is None else splash.SegmentIds(segments_T, segments_T)
        heads_first = (x.swapaxes(0, 1) for x in (q_TNK, k_TGK, v_TGK))
        return kernel(*heads_first, segment_ids=ids).swapaxes(0, 1)

    scaled_BTNK = (q_BTNK * width**-0.5).astype(q_BTNK.dtype)
    return jax.vmap(one_row)(scaled_BTNK, k_BTGK, v_BTGK, segments_BT)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def splash_attention(window: int, q_BTNK, k_BTGK, v_BTGK, segments_BT) -> jax.Array:
    """Return y_BTNK as `splash_rows` does, once the small arrays that it saves are there.

    Splash writes each logarithm of a softmax's sum 128 times, and saves one of them. The
    compiler for TPUs sometimes cut that one out just before the backward pass, and kept all
    128 until then: at head width 64 in bfloat16, four times as much as the output.
    """
    return splash_rows(window, q_BTNK, k_BTGK, v_BTGK, segments_BT)


def splash_forward(window: int, *arrays):
    y_BTNK, pull = jax.vjp(partial(splash_rows, window), *arrays)
    saved, structure = jax.tree.flatten(pull)
    small = [i for i, x in enumerate(saved) if x.size < y_BTNK.size]
    y_BTNK, *held = jax.lax.optimization_barrier((y_BTNK, *(saved[i] for i in small)))
    for i, x in zip(small, held, strict=True):
        saved[i] = x
    return y_BTNK, structure.unflatten(saved)


def splash_backward(window: int, pull, dy_BTNK: jax.Array):
    return pull(dy_BTNK)


splash_attention.defvjp(splash_forward, splash_backward)


def split_rows_and_heads(kernel):
    """Make each device run `kernel` on its own rows and heads.

    The compiler cannot split such a kernel by itself. The heads are split over the mesh
    axis `tensor`, the rows over the other axes that are left to the compiler. If no axis is
    left to it (one device, or inside shard_map), each device has only its own rows already.
    If there are fewer key/value heads than devices, they are repeated.
    """
    axes = axes_left_to_the_compiler()
    if not axes:
        return kernel
    rows = tuple(axis for axis in axes if axis != HEADS_AXIS)
    heads = HEADS_AXIS if HEADS_AXIS in axes else None
    x, segments = P(rows, None, heads), P(rows)
    split = jax.shard_map(
        kernel,
        axis_names=set(axes),
        in_specs=(x, x, x, segments),
        out_specs=x,
        check_vma=False,
    )

    def attention(q_BTNK, k_BTGK, v_BTGK, segments_BT) -> jax.Array:
        num_heads, num_kv_heads = q_BTNK.shape[2], k_BTGK.shape[2]
        if heads and num_kv_heads % jax.sharding.get_abstract_mesh().shape[heads]:
            repeats = num_heads // num_kv_heads
            k_BTGK, v_BTGK = (jnp.repeat(x, repeats, axis=2) for x in (k_BTGK, v_BTGK))
        return split(q_BTNK, k_BTGK, v_BTGK, segments_BT)

    return attention


def is_split_twice() -> bool:
    """Tell whether `split_rows_and_heads` works inside another shard_map."""
    axes = axes_left_to_the_compiler()
    return 0 < len(axes) < len(jax.sharding.get_abstract_mesh().axis_names)


def axes_left_to_the_compiler() -> tuple[str, ...]:
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(axis for axis, kind in kinds if kind == AxisType.Auto)


def attend_cached(q_BTNK, k_BSGK, v_BSGK, mask_B1TS) -> jax.Array:
    """Return y_BTNK: attention to the cached keys that the mask selects."""
    dtype = q_BTNK.dtype
    if dtype == jnp.float16 and platform() == "cpu":
        # XLA for CPUs has no product of float16 that accumulates in float32.
        q_BTNK, k_BSGK, v_BSGK = (x.astype(jnp.float32) for x in (q_BTNK, k_BSGK, v_BSGK))
    return jax.nn.dot_product_attention(
        q_BTNK, k_BSGK, v_BSGK, mask=mask_B1TS, implementation="xla"
    ).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def blockwise_attention(window: int, q_BTNK, k_BTGK, v_BTGK, segments_BT) -> jax.Array:
    """Return y_BTNK, one block of queries at a time, computed in float32.

    A block of queries sees only the keys up to its own end, so that half of the products of
    full attention are left out; a window leaves out earlier keys too. No T x T array
    outlives its block: the forward pass keeps only the logarithms of the softmax's sums,
    and the backward pass computes the probabilities again from them (Dao 2023,
    FlashAttention-2, 3.1).
    """
    return forward(window, q_BTNK, k_BTGK, v_BTGK, segments_BT)[0]


def query_blocks(num_queries: int) -> list[tuple[int, int]]:
    size = max(BLOCK, -(-num_queries // MAX_BLOCKS))
    return [(i, min(i + size, num_queries)) for i in range(0, num_queries, size)]


def keys_seen(start: int, end: int, window: int) -> slice:
    """Return the keys that any of the queries start..end sees."""
    return slice(max(start - window + 1, 0) if window else 0, end)


def scores(q_BGRTK, k_BGSK, segments_BT, block: slice, window: int) -> jax.Array:
    """Return s_BGRTS of a block of queries and the keys that any of them sees."""
    keys = keys_seen(block.start, block.stop, window)
    s_BGRTS = jnp.einsum("bgrtk,bgsk->bgrts", q_BGRTK[:, :, :, block], k_BGSK[:, :, keys])
    query_T1, key_S = (jnp.arange(x.start, x.stop) for x in (block, keys))
    query_T1 = query_T1[:, None]
    mask = query_T1 >= key_S
    if window:
        mask &= query_T1 - key_S < window
    if segments_BT is not None:
        same_BTS = segments_BT[:, block, None] == segments_BT[:, None, keys]
        mask = (mask & same_BTS)[:, None, None]
    return jnp.where(mask, s_BGRTS, MASKED)


def heads_first(x_BTNK: jax.Array, num_kv_heads: int) -> jax.Array:
    batch, time, _, width = x_BTNK.shape
    x_BTGRK = x_BTNK.astype(jnp.float32).reshape(batch, time, num_kv_heads, -1, width)
    return x_BTGRK.transpose(0, 2, 3, 1, 4)


def forward(window: int, q_BTNK, k_BTGK, v_BTGK, segments_BT):
    num_kv_heads, width = k_BTGK.shape[2:]
    q_BGRTK = heads_first(q_BTNK, num_kv_heads) * width**-0.5
    k_BGSK = heads_first(k_BTGK, num_kv_heads)[:, :, 0]
    v_BGSK = heads_first(v_BTGK, num_kv_heads)[:, :, 0]
    # For each block: scores, softmax, and the mean of the values. The largest score is
    # subtracted first, so that no exponential overflows.
    ys, logs = [], []
    for start, end in query_blocks(q_BTNK.shape[1]):
        s_BGRTS = scores(q_BGRTK, k_BGSK, segments_BT, slice(start, end), window)
        keys = keys_seen(start, end, window)
        max_BGRT1 = jnp.max(s_BGRTS, -1, keepdims=True)
        e_BGRTS = jnp.exp(s_BGRTS - max_BGRT1)
        sum_BGRT1 = jnp.sum(e_BGRTS, -1, keepdims=True)
        # Divide after the product: that is K divisions a query instead of S.
        y_BGRTK = jnp.einsum("bgrts,bgsk->bgrtk", e_BGRTS, v_BGSK[:, :, keys])
        ys.append(y_BGRTK / sum_BGRT1)
        logs.append(max_BGRT1 + jnp.log(sum_BGRT1))
    y_BTNK = jnp.concatenate(ys, 3).transpose(0, 3, 1, 2, 4).reshape(q_BTNK.shape)
    y_BTNK = y_BTNK.astype(q_BTNK.dtype)
    return y_BTNK, (q_BGRTK, k_BGSK, v_BGSK, y_BTNK, logs, segments_BT)


def backward(window: int, saved, dy_BTNK: jax.Array):
    q_BGRTK, k_BGSK, v_BGSK, y_BTNK, logs, segments_BT = saved
    batch, num_kv_heads, _, time, width = q_BGRTK.shape
    dtype = dy_BTNK.dtype
    dy_BGRTK = heads_first(dy_BTNK, num_kv_heads)
    # The gradient of a softmax p is p * (dp - sum(p * dp)). That sum over keys equals the
    # sum of dy * y over the head width, which needs no probabilities.
    dot_BTN1 = jnp.sum(
        dy_BTNK.astype(jnp.float32) * y_BTNK.astype(jnp.float32), -1, keepdims=True
    )
    dot_BGRT1 = heads_first(dot_BTN1, num_kv_heads)
    dqs = []
    # The gradients of keys have the head width before the time: XLA for CPUs multiplies
    # them 2 to 3 times faster in this order.
    dk_BGKS = jnp.zeros((batch, num_kv_heads, width, time))
    dv_BGKS = dk_BGKS
    for (start, end), log_BGRT1 in zip(query_blocks(time), logs, strict=True):
        block, keys = slice(start, end), keys_seen(start, end, window)
        q, dy = q_BGRTK[:, :, :, block], dy_BGRTK[:, :, :, block]
        s_BGRTS = scores(q_BGRTK, k_BGSK, segments_BT, block, window)
        p_BGRTS = jnp.exp(s_BGRTS - log_BGRT1)  # the probabilities again
        dp_BGRTS = jnp.einsum("bgrtk,bgsk->bgrts", dy, v_BGSK[:, :, keys])
        ds_BGRTS = p_BGRTS * (dp_BGRTS - dot_BGRT1[:, :, :, block])
        dqs.append(jnp.einsum("bgrts,bgsk->bgrtk", ds_BGRTS, k_BGSK[:, :, keys]))
        dk_BGKS = dk_BGKS.at[..., keys].add(jnp.einsum("bgrtk,bgrts->bgks", q, ds_BGRTS))
        dv_BGKS = dv_BGKS.at[..., keys].add(jnp.einsum("bgrtk,bgrts->bgks", dy, p_BGRTS))
    dq_BGRTK = jnp.concatenate(dqs, 3) * width**-0.5
    dq_BTNK = dq_BGRTK.transpose(0, 3, 1, 2, 4).reshape(dy_BTNK.shape)
    dk_BTGK, dv_BTGK = (x.transpose(0, 3, 1, 2) for x in (dk_BGKS, dv_BGKS))
    return dq_BTNK.astype(dtype), dk_BTGK.astype(dtype), dv_BTGK.astype(dtype), None


blockwise_attention.defvjp(forward, backward)
