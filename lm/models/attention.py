"""Attention as functions: the kernel by platform, rotary positions, positions in segments.

Shapes: B batch, T queries, S keys, N heads, G key/value heads, K head width.
"""

import jax
import jax.numpy as jnp


def attend(q_BTNK, k_BSGK, v_BSGK, mask, is_causal: bool, wanted: str) -> jax.Array:
    """Return y_BTNK, by cuDNN's flash attention where it exists, else by XLA.

    cuDNN takes 16-bit types on a GPU only, with head widths that 8 divides.
    """
    dtype, head_width, backend = q_BTNK.dtype, q_BTNK.shape[-1], jax.default_backend()
    kernel = wanted
    if wanted == "auto":
        sixteen_bits = dtype in (jnp.bfloat16, jnp.float16)
        fits = sixteen_bits and head_width % 8 == 0 and head_width <= 128
        kernel = "cudnn" if backend == "gpu" and fits else "xla"
    if dtype == jnp.float16 and backend == "cpu":
        # XLA for CPUs has no product of float16 that accumulates in float32.
        q_BTNK, k_BSGK, v_BSGK = (x.astype(jnp.float32) for x in (q_BTNK, k_BSGK, v_BSGK))
    y_BTNK = jax.nn.dot_product_attention(
        q_BTNK, k_BSGK, v_BSGK, mask=mask, is_causal=is_causal, implementation=kernel
    )
    return y_BTNK.astype(dtype)


def rotate(x_BTNK: jax.Array, positions_BT: jax.Array, base: float) -> jax.Array:
    """Apply rotary position embedding, halves paired (Su et al. 2021; Llama's order)."""
    half = x_BTNK.shape[-1] // 2
    frequency_K = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1K = positions_BT[:, :, None, None] * frequency_K
    sin, cos = jnp.sin(angle_BT1K), jnp.cos(angle_BT1K)
    a, b = jnp.split(x_BTNK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return rotated.astype(x_BTNK.dtype)


def positions_in_segment(tokens_BT: jax.Array, segments_BT) -> jax.Array:
    """Return each token's position within its document's piece."""
    index_T = jnp.arange(tokens_BT.shape[1])
    if segments_BT is None:
        return jnp.broadcast_to(index_T, tokens_BT.shape)
    first_BT = segments_BT != jnp.pad(segments_BT, ((0, 0), (1, 0)))[:, :-1]
    start_BT = jax.lax.cummax(jnp.where(first_BT, index_T, 0), axis=1)
    return index_T - start_BT
