"""Rotary position embedding, and positions in the segments of packed rows.

Shapes: B batch, T time, N heads, K head width.
"""

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

KINDS = ("none", "linear", "llama3")
SCALED = {"only": {".kind": ("linear", "llama3")}}
BY_WAVELENGTH = {"only": {".kind": ("llama3",)}}


@dataclass(unsafe_hash=True)
class RotaryScaling:
    # how the rotary frequencies are lowered for longer texts; linear: all of them (Chen et
    # al. 2023); llama3: only those of long wavelengths (Grattafiori et al. 2024)
    kind: str = field(default="none", metadata={"choices": KINDS})
    # what the frequencies are divided by
    factor: float = field(default=8.0, metadata={"above": 0} | SCALED)
    # llama3: context / slowest and longer wavelengths are lowered by the whole factor
    slowest: float = field(default=1.0, metadata={"above": 0} | BY_WAVELENGTH)
    # llama3: context / fastest and shorter wavelengths are kept; between, a mean of both
    fastest: float = field(default=4.0, metadata={"above": 0} | BY_WAVELENGTH)
    # llama3: tokens of the texts that the model was first trained on
    context: int = field(default=8192, metadata={"at_least": 1} | BY_WAVELENGTH)

    def validate(self, prefix: str) -> None:
        if self.slowest >= self.fastest:
            raise ValueError(
                f"{prefix}.slowest {self.slowest} is not below {prefix}.fastest "
                f"{self.fastest}; change one of them"
            )

    def __call__(self, frequency_K: jax.Array) -> jax.Array:
        if self.kind == "none":
            return frequency_K
        if self.kind == "linear":
            return frequency_K / self.factor
        waves_K = self.context * frequency_K / (2 * math.pi)  # in the first context
        kept_K = jnp.clip((waves_K - self.slowest) / (self.fastest - self.slowest), 0, 1)
        return frequency_K * (kept_K + (1 - kept_K) / self.factor)


def rotate(
    x_BTNK: jax.Array,
    positions_BT: jax.Array,
    base: float,
    scaling: RotaryScaling | None = None,
) -> jax.Array:
    """Apply rotary position embedding (Su et al. 2021), with halves paired as in Llama."""
    half = x_BTNK.shape[-1] // 2
    frequency_K = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is not None:
        frequency_K = scaling(frequency_K)
    angle_BT1K = positions_BT[:, :, None, None] * frequency_K
    sin, cos = jnp.sin(angle_BT1K), jnp.cos(angle_BT1K)
    a, b = jnp.split(x_BTNK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return rotated.astype(x_BTNK.dtype)


def positions_in_segment(tokens_BT: jax.Array, segments_BT) -> jax.Array:
    """Return the position of each token in its segment (None: the row is one segment)."""
    index_T = jnp.arange(tokens_BT.shape[1])
    if segments_BT is None:
        return jnp.broadcast_to(index_T, tokens_BT.shape)
    first_BT = segments_BT != jnp.pad(segments_BT, ((0, 0), (1, 0)))[:, :-1]
    start_BT = jax.lax.cummax(jnp.where(first_BT, index_T, 0), axis=1)
    return index_T - start_BT
