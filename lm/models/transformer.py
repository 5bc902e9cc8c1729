"""Decoder-only transformer: the GPT-2 and the Llama shape, and what lies between.

Pre-norm residual blocks (Radford et al. 2019; Touvron et al. 2023). Rows may hold several
documents: attention stays inside a segment and positions restart with it. The module knows
nothing of devices.

Shapes: B batch, T time, S cache length, D model width, N heads, G key/value heads,
K head width, F hidden width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lm.models.attention import attend, attend_cached, positions_in_segment, rotate
from lm.models.layers import gelu, matmul
from lm.task import Task, next_token_task

ACTIVATIONS = ("relu", "gelu", "swiglu")
NORMS = ("layernorm", "rmsnorm")
POSITIONS = ("learned", "rotary")
INITIALIZERS = ("gpt2", "xavier", "he")
RESIDUAL = "residual"  # the checkpoint name of the stream between blocks
DOTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
SAVEABLE = {  # what the backward pass may keep; None: everything
    "none": None,
    "full": jax.checkpoint_policies.save_only_these_names(RESIDUAL),
    "dots": jax.checkpoint_policies.save_from_both_policies(
        DOTS, jax.checkpoint_policies.save_only_these_names(RESIDUAL)
    ),
}
ATTENTION = ("auto", "blockwise", "xla", "cudnn", "splash")


@dataclass
class TransformerConfig:
    width: int = 256  # D
    num_layers: int = 4
    num_heads: int = 4  # N; the head width is width / num_heads
    num_kv_heads: int = 0  # G, grouped-query attention; 0: as many as heads
    mlp_width: int = 0  # F; 0: 4 D, or 8/3 D rounded up to 32 for swiglu
    activation: str = "gelu"  # relu | gelu | swiglu
    norm: str = "layernorm"  # layernorm | rmsnorm
    positions: str = "learned"  # learned | rotary
    rotary_base: float = 10_000.0
    tied: bool = True  # the head is the transposed embedding
    bias: bool = True  # of the linear layers
    dropout: float = 0.0
    init: str = "gpt2"  # gpt2 (0.02, residual scaled by depth) | xavier | he
    remat: str = "none"  # recompute in the backward pass: none | full | dots
    scan_layers: bool = False  # stack the layers, compile one, loop over it
    attention: str = "auto"  # auto (by platform) | blockwise | xla | cudnn | splash
    loss_chunk: int = 0  # positions whose logits exist at once; 0: all

    def validate(self, seq_len: int) -> None:
        for name, options in [
            ("activation", ACTIVATIONS),
            ("norm", NORMS),
            ("positions", POSITIONS),
            ("init", INITIALIZERS),
            ("remat", tuple(SAVEABLE)),
            ("attention", ATTENTION),
        ]:
            if (value := getattr(self, name)) not in options:
                raise ValueError(
                    f"model.{name} is {value!r}; choose one of {', '.join(options)}"
                )
        for name in ("width", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"model.{name} is {getattr(self, name)}; it must be at least 1"
                )
        if self.width % self.num_heads:
            raise ValueError(
                f"model.num_heads {self.num_heads} does not divide model.width "
                f"{self.width}; change one of them"
            )
        if self.num_kv_heads < 0 or (
            self.num_kv_heads and self.num_heads % self.num_kv_heads
        ):
            raise ValueError(
                f"model.num_kv_heads {self.num_kv_heads} does not divide "
                f"model.num_heads {self.num_heads}"
            )
        if self.positions == "rotary" and (self.width // self.num_heads) % 2:
            raise ValueError(
                f"model.positions=rotary needs an even head width, not "
                f"{self.width // self.num_heads} (width {self.width} / "
                f"{self.num_heads} heads)"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.dropout is {self.dropout}; expected 0 <= p < 1")
        if self.loss_chunk < 0 or (self.loss_chunk and seq_len % self.loss_chunk):
            raise ValueError(
                f"model.loss_chunk {self.loss_chunk} does not divide data.seq_len {seq_len}"
            )


def transformer_task(config: TransformerConfig, vocab_size: int, seq_len: int) -> Task:
    return next_token_task(
        lambda rngs: Transformer(config, vocab_size, seq_len, rngs),
        config.loss_chunk,
        SAVEABLE[config.remat],
    )


def initializer(config: TransformerConfig, residual: bool = False):
    """Return the initialiser of a weight matrix.

    gpt2: normal 0.02, matrices that write to the residual stream divided by
    sqrt(2 layers) (Radford et al. 2019, 2.3). xavier: Glorot and Bengio 2010. he: He et
    al. 2015.
    """
    if config.init == "xavier":
        return nnx.initializers.xavier_uniform()
    if config.init == "he":
        return nnx.initializers.he_normal()
    scale = (2 * config.num_layers) ** -0.5 if residual else 1.0
    return nnx.initializers.normal(0.02 * scale)


def linear(
    config: TransformerConfig,
    rngs: nnx.Rngs,
    num_in: int,
    num_out: int,
    residual: bool = False,
) -> nnx.Linear:
    return nnx.Linear(
        num_in,
        num_out,
        use_bias=config.bias,
        kernel_init=initializer(config, residual),
        dot_general=lambda x, w, *_, **__: matmul(x, w),
        rngs=rngs,
    )


class Attention(nnx.Module):
    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        c = config
        self.num_heads = c.num_heads
        self.num_kv_heads = c.num_kv_heads or c.num_heads
        self.head_width = c.width // c.num_heads
        self.rotary_base = c.rotary_base if c.positions == "rotary" else None
        self.implementation = c.attention
        kv_width = self.num_kv_heads * self.head_width

        self.query = linear(c, rngs, c.width, c.width)
        self.key = linear(c, rngs, c.width, kv_width)
        self.value = linear(c, rngs, c.width, kv_width)
        self.out = linear(c, rngs, c.width, c.width, residual=True)

    def project(self, x_BTD: jax.Array, positions_BT: jax.Array):
        batch, time, _ = x_BTD.shape
        q_BTNK = self.query(x_BTD).reshape(batch, time, self.num_heads, -1)
        k_BTGK = self.key(x_BTD).reshape(batch, time, self.num_kv_heads, -1)
        v_BTGK = self.value(x_BTD).reshape(batch, time, self.num_kv_heads, -1)
        if self.rotary_base is not None:
            q_BTNK = rotate(q_BTNK, positions_BT, self.rotary_base)
            k_BTGK = rotate(k_BTGK, positions_BT, self.rotary_base)
        return q_BTNK, k_BTGK, v_BTGK

    def __call__(self, x_BTD, positions_BT, segments_BT) -> jax.Array:
        q_BTNK, k_BTGK, v_BTGK = self.project(x_BTD, positions_BT)
        y_BTNK = attend(q_BTNK, k_BTGK, v_BTGK, segments_BT, self.implementation)
        return self.out(y_BTNK.reshape(x_BTD.shape))

    def decode(self, x_BTD, positions_BT, cache: tuple[jax.Array, jax.Array]):
        """Attend to the cache k_BSGK, v_BSGK after writing these positions into it."""
        q_BTNK, k_BTGK, v_BTGK = self.project(x_BTD, positions_BT)
        rows_B1 = jnp.arange(x_BTD.shape[0])[:, None]
        k_BSGK = cache[0].at[rows_B1, positions_BT].set(k_BTGK.astype(cache[0].dtype))
        v_BSGK = cache[1].at[rows_B1, positions_BT].set(v_BTGK.astype(cache[1].dtype))
        # Slots beyond a row's own position hold nothing yet, or padding of its prompt.
        mask_B1TS = (jnp.arange(k_BSGK.shape[1]) <= positions_BT[:, :, None])[:, None]
        y_BTNK = attend_cached(q_BTNK, k_BSGK, v_BSGK, mask_B1TS)
        return self.out(y_BTNK.reshape(x_BTD.shape)), (k_BSGK, v_BSGK)


class MLP(nnx.Module):
    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        c = config
        gated = c.activation == "swiglu"
        hidden = c.mlp_width or (-(-8 * c.width // 96) * 32 if gated else 4 * c.width)

        self.activation = c.activation
        self.up = linear(c, rngs, c.width, hidden)
        self.gate = linear(c, rngs, c.width, hidden) if gated else None
        self.down = linear(c, rngs, hidden, c.width, residual=True)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        h_BTF = self.up(x_BTD)
        if self.gate is not None:
            h_BTF = jax.nn.silu(self.gate(x_BTD)) * h_BTF
        elif self.activation == "gelu":
            h_BTF = gelu(h_BTF)
        else:
            h_BTF = jax.nn.relu(h_BTF)
        return self.down(h_BTF)


class Block(nnx.Module):
    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.dropout = config.dropout
        self.attention_norm = Norm(config)
        self.attention = Attention(config, rngs)
        self.mlp_norm = Norm(config)
        self.mlp = MLP(config, rngs)

    def __call__(self, x_BTD, positions_BT, segments_BT, row_keys_B) -> jax.Array:
        y_BTD = self.attention(self.attention_norm(x_BTD), positions_BT, segments_BT)
        x_BTD += dropout(y_BTD, self.dropout, row_keys_B, 0)
        y_BTD = self.mlp(self.mlp_norm(x_BTD))
        return x_BTD + dropout(y_BTD, self.dropout, row_keys_B, 1)

    def decode(self, x_BTD, positions_BT, cache):
        y_BTD, cache = self.attention.decode(
            self.attention_norm(x_BTD), positions_BT, cache
        )
        x_BTD += y_BTD
        return x_BTD + self.mlp(self.mlp_norm(x_BTD)), cache


class Transformer(nnx.Module):
    def __init__(
        self,
        config: TransformerConfig,
        vocab_size: int,
        seq_len: int,
        rngs: nnx.Rngs,
    ):
        c = config
        self.config = c
        # He and Xavier are meant for matrices that sum over their input; a table is read.
        table_init = nnx.initializers.normal(0.02)
        # Plain parameters: nnx.Embed would cast them to the type that it was made with.
        self.embedding = nnx.Param(table_init(rngs.params(), (vocab_size, c.width)))
        self.position_embedding = (
            nnx.Param(table_init(rngs.params(), (seq_len, c.width)))
            if c.positions == "learned"
            else None
        )
        # Traced once for all layers: NNX traces in time quadratic in the keys drawn.
        make_block = jax.jit(lambda key: Block(c, nnx.Rngs(key)))
        keys_L = jax.random.split(rngs.params(), c.num_layers)
        if c.scan_layers:
            self.layers, self.scanned_layers = None, jax.vmap(make_block)(keys_L)
        else:
            self.layers = nnx.List([make_block(key) for key in keys_L])
            self.scanned_layers = None
        self.final_norm = Norm(c)
        self.output = (
            None
            if c.tied
            else nnx.Linear(
                c.width, vocab_size, use_bias=False, kernel_init=table_init, rngs=rngs
            )
        )

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        x_BTD = self.embedding[tokens_BT]
        if self.position_embedding is not None:
            x_BTD += self.position_embedding[positions_BT]
        return x_BTD

    def hidden(self, tokens_BT, segments_BT, row_keys_B) -> jax.Array:
        """Return x_BTD, the final hidden states. No keys: no dropout."""
        positions_BT = positions_in_segment(tokens_BT, segments_BT)
        x_BTD = self.embed(tokens_BT, positions_BT)
        x_BTD = dropout(x_BTD, self.config.dropout, row_keys_B, self.config.num_layers)

        def layer(x_BTD, block: Block, index) -> jax.Array:
            keys_B = row_keys_B
            if row_keys_B is not None:
                keys_B = jax.vmap(jax.random.fold_in, (0, None))(row_keys_B, index)
            return block(x_BTD, positions_BT, segments_BT, keys_B)

        if self.config.remat != "none":
            layer = jax.checkpoint(layer, policy=SAVEABLE[self.config.remat])
        if self.scanned_layers is None:
            layer = jax.jit(layer)  # traced once for all layers
            for index, block in enumerate(self.layers):
                x_BTD = checkpoint_name(layer(x_BTD, block, index), RESIDUAL)
            return self.final_norm(x_BTD)

        def body(x_BTD, scanned):
            return checkpoint_name(layer(x_BTD, *scanned), RESIDUAL), None

        scanned_L = self.scanned_layers, jnp.arange(self.config.num_layers)
        return self.final_norm(jax.lax.scan(body, x_BTD, scanned_L)[0])

    def blocks(self) -> Sequence[Block]:
        """Return the layers one by one, scanned or not."""
        if self.scanned_layers is None:
            return self.layers
        indices = range(self.config.num_layers)
        return [jax.tree.map(itemgetter(i), self.scanned_layers) for i in indices]

    def head(self, x_BTD: jax.Array) -> jax.Array:
        if self.output is None:
            return matmul(x_BTD, self.embedding[...].T)
        return self.output(x_BTD)

    def cache(self, batch_size: int, length: int):
        c = self.config
        shape = (batch_size, length, c.num_kv_heads or c.num_heads, c.width // c.num_heads)
        return [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(c.num_layers)]

    def decode(self, cache, tokens_BT: jax.Array, start_B: jax.Array):
        """Return logits_BTV and the cache, with each row's tokens written at start_B."""
        positions_BT = start_B[:, None] + jnp.arange(tokens_BT.shape[1])
        x_BTD = self.embed(tokens_BT, positions_BT)
        new_cache = []
        for block, layer_cache in zip(self.blocks(), cache, strict=True):
            x_BTD, layer_cache = block.decode(x_BTD, positions_BT, layer_cache)
            new_cache.append(layer_cache)
        return self.head(self.final_norm(x_BTD)), new_cache


class Norm(nnx.Module):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016), in float32.

    Plain products: nnx.RMSNorm made a whole training step 5 % slower on a CPU.
    """

    def __init__(self, config: TransformerConfig):
        rms = config.norm == "rmsnorm"
        self.centre = not rms
        self.epsilon = 1e-6 if rms else 1e-5
        self.scale = nnx.Param(jnp.ones(config.width))
        with_bias = config.bias and not rms
        self.bias = nnx.Param(jnp.zeros(config.width)) if with_bias else None

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        y_BTD = x_BTD.astype(jnp.float32)
        if self.centre:
            y_BTD -= jnp.mean(y_BTD, -1, keepdims=True)
        variance_BT1 = jnp.mean(y_BTD * y_BTD, -1, keepdims=True)
        y_BTD = y_BTD * jax.lax.rsqrt(variance_BT1 + self.epsilon) * self.scale[...]
        if self.bias is not None:
            y_BTD += self.bias[...]
        return y_BTD.astype(x_BTD.dtype)


def dropout(x_BTD: jax.Array, rate: float, row_keys_B, site: int) -> jax.Array:
    """Drop elements, each row from its own key: the same masks under every sharding."""
    if rate == 0.0 or row_keys_B is None:
        return x_BTD

    def one_row(key: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, site)
        return jax.random.bernoulli(key, 1.0 - rate, x_BTD.shape[1:])

    kept_BTD = jax.vmap(one_row)(row_keys_B)
    return jnp.where(kept_BTD, x_BTD / (1.0 - rate), 0).astype(x_BTD.dtype)
