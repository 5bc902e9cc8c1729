"""The transformer with an encoder; see lm/models/seq2seq/task.py.

Shapes: B batch, S source, T target, L length of the cache, D model width, N heads, K head
width, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lm.models.attention import attend_cached
from lm.models.layers import dropout, lookup, vocabulary_logits
from lm.models.setting import Setting
from lm.models.transformer.config import TransformerConfig
from lm.models.transformer.model import MLP, Attention, linear, norm
from lm.vocabulary import END_ID

Streams = tuple[jax.Array, jax.Array]  # source_BSD, and x_BTD for the target


def source_mask(source_BS: jax.Array) -> jax.Array:
    """Return bool_BS, true up to the first end mark of a source; the rest is padding."""
    ends_BS = (source_BS == END_ID).astype(jnp.int32)
    return jnp.cumsum(ends_BS, axis=1) - ends_BS == 0


def layer_keys(row_keys_B: jax.Array | None, index: int) -> jax.Array | None:
    if row_keys_B is None:
        return None
    return jax.vmap(jax.random.fold_in, (0, None))(row_keys_B, index)


def every_position(x_BTD: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(x_BTD.shape[1]), x_BTD.shape[:2])


class EncoderBlock(nnx.Module):
    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.dropout = config.dropout
        self.attention_norm = norm(config)
        self.attention = Attention(config, rngs)
        self.mlp_norm = norm(config)
        self.mlp = MLP(config, rngs)

    def __call__(self, x_BSD, positions_BS, mask_B11S, row_keys_B) -> jax.Array:
        y_BSD = self.attention_norm(x_BSD)
        y_BSNK = attend_cached(*self.attention.project(y_BSD, positions_BS), mask_B11S)
        y_BSD = self.attention.out(y_BSNK.reshape(x_BSD.shape))
        x_BSD += dropout(y_BSD, self.dropout, row_keys_B, 0)
        y_BSD = self.mlp(self.mlp_norm(x_BSD))
        return x_BSD + dropout(y_BSD, self.dropout, row_keys_B, 1)


class CrossAttention(nnx.Module):
    """Attention from the target to the output of the encoder, without positions."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        width = config.width
        self.num_heads = config.num_heads
        self.query = linear(config, rngs, width, width)
        self.key = linear(config, rngs, width, width)
        self.value = linear(config, rngs, width, width)
        self.out = linear(config, rngs, width, width, residual=True)

    def heads(self, x_BTD: jax.Array) -> jax.Array:
        return x_BTD.reshape(*x_BTD.shape[:2], self.num_heads, -1)

    def memory(self, x_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.heads(self.key(x_BSD)), self.heads(self.value(x_BSD))

    def __call__(self, x_BTD, memory, mask_B11S) -> jax.Array:
        y_BTNK = attend_cached(self.heads(self.query(x_BTD)), *memory, mask_B11S)
        return self.out(y_BTNK.reshape(x_BTD.shape))


class DecoderBlock(nnx.Module):
    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.dropout, self.num_encoder_layers = config.dropout, config.num_layers
        self.attention_norm = norm(config)
        self.attention = Attention(config, rngs)
        self.cross_norm = norm(config)
        self.cross = CrossAttention(config, rngs)
        self.mlp_norm = norm(config)
        self.mlp = MLP(config, rngs)

    def after(self, x_BTD, y_BTD, memory, mask_B11S, row_keys_B) -> jax.Array:
        """Return the output of the block; y_BTD is that of its attention to the target."""
        x_BTD += dropout(y_BTD, self.dropout, row_keys_B, 0)
        y_BTD = self.cross(self.cross_norm(x_BTD), memory, mask_B11S)
        x_BTD += dropout(y_BTD, self.dropout, row_keys_B, 1)
        y_BTD = self.mlp(self.mlp_norm(x_BTD))
        return x_BTD + dropout(y_BTD, self.dropout, row_keys_B, 2)

    def __call__(self, streams: Streams, mask_BS, index, row_keys_B) -> Streams:
        """Run layer number `index` of the decoder; the source goes on unchanged."""
        source_BSD, x_BTD = streams
        memory, mask_B11S = self.cross.memory(source_BSD), mask_BS[:, None, None]
        keys_B = layer_keys(row_keys_B, self.num_encoder_layers + index)
        # No mask of segments: only padding follows a target, and attention is causal.
        positions_BT = every_position(x_BTD)
        y_BTD = self.attention(self.attention_norm(x_BTD), positions_BT, None)
        return source_BSD, self.after(x_BTD, y_BTD, memory, mask_B11S, keys_B)

    def decode(self, x_BTD, positions_BT, cache, memory, mask_B11S):
        y_BTD, cache = self.attention.decode(
            self.attention_norm(x_BTD), positions_BT, cache
        )
        return self.after(x_BTD, y_BTD, memory, mask_B11S, None), cache


class TransformerSeq2Seq(nnx.Module):
    def __init__(
        self,
        config: TransformerConfig,
        setting: Setting,
        rngs: nnx.Rngs,
    ):
        c, vocab_size = config, setting.vocab_size
        self.config, self.setting = c, setting
        table_init = nnx.initializers.normal(0.02)
        self.embedding = nnx.Param(table_init(rngs.params(), (vocab_size, c.width)))
        # Trace one block for all layers: NNX's tracing is quadratic in the keys drawn.
        encoder_block = jax.jit(lambda key: EncoderBlock(c, nnx.Rngs(key)))
        decoder_block = jax.jit(lambda key: DecoderBlock(c, nnx.Rngs(key)))
        keys = jax.random.split(rngs.params(), 2 * c.num_layers)
        self.encoder = nnx.List([encoder_block(key) for key in keys[::2]])
        self.encoder_norm = norm(c)
        self.layers = nnx.List([decoder_block(key) for key in keys[1::2]])  # the decoder's
        self.final_norm = norm(c)
        self.output = (
            None
            if c.tied
            else nnx.Linear(
                c.width, vocab_size, use_bias=False, kernel_init=table_init, rngs=rngs
            )
        )

    def read(self, source_BS: jax.Array, row_keys_B) -> jax.Array:
        """Return the output of the encoder, x_BSD."""
        c = self.config
        mask_B11S = source_mask(source_BS)[:, None, None]
        x_BSD = dropout(
            lookup(self.embedding, source_BS), c.dropout, row_keys_B, 2 * c.num_layers
        )
        positions_BS = every_position(x_BSD)
        for index, block in enumerate(self.encoder):
            x_BSD = block(x_BSD, positions_BS, mask_B11S, layer_keys(row_keys_B, index))
        return self.encoder_norm(x_BSD)

    def enter(self, tokens_BT: jax.Array, row_keys_B) -> Streams:
        """Return the input of the first layer of the decoder."""
        c = self.config
        source = self.setting.source_part(tokens_BT.shape[1])
        source_BS, target_BT = jnp.split(tokens_BT, [source], axis=1)
        site = 2 * c.num_layers + 1  # after the keys of all layers
        x_BTD = dropout(lookup(self.embedding, target_BT), c.dropout, row_keys_B, site)
        return self.read(source_BS, row_keys_B), x_BTD

    def leave(self, streams: Streams, mask_BS: jax.Array) -> jax.Array:
        """Return x_BTD for the positions of the target, from the last layer's output."""
        return self.final_norm(streams[1])

    def hidden(self, tokens_BT, segments_BT, row_keys_B) -> jax.Array:
        """Return x_BTD for the positions of the target; without keys, without dropout."""
        source = self.setting.source_part(tokens_BT.shape[1])
        mask_BS = source_mask(tokens_BT[:, :source])
        streams = self.enter(tokens_BT, row_keys_B)
        for index, block in enumerate(self.layers):
            streams = block(streams, mask_BS, index, row_keys_B)
        return self.leave(streams, mask_BS)

    def head(self, x_BTD: jax.Array) -> jax.Array:
        return vocabulary_logits(x_BTD, self.embedding, self.output)

    def cache(self, batch_size: int, length: int) -> dict:
        c = self.config

        def keys_and_values(length: int) -> list[tuple[jax.Array, jax.Array]]:
            shape = batch_size, length, c.num_heads, c.width // c.num_heads
            return [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(c.num_layers)]

        return {
            "mask": jnp.zeros((batch_size, self.setting.source_len), bool),
            "source": keys_and_values(self.setting.source_len),
            "target": keys_and_values(length),
        }

    def encode(self, cache: dict, source_BS: jax.Array) -> dict:
        x_BSD = self.read(source_BS, None)
        memories = [block.cross.memory(x_BSD) for block in self.layers]
        return cache | {"mask": source_mask(source_BS), "source": memories}

    def decode(self, cache: dict, tokens_BT: jax.Array, start_B: jax.Array):
        """Return logits_BTV and the cache; the tokens of a row begin at start_B."""
        positions_BT = start_B[:, None] + jnp.arange(tokens_BT.shape[1])
        mask_B11S = cache["mask"][:, None, None]
        x_BTD, target = lookup(self.embedding, tokens_BT), []
        layers = zip(self.layers, cache["target"], cache["source"], strict=True)
        for block, past, memory in layers:
            x_BTD, past = block.decode(x_BTD, positions_BT, past, memory, mask_B11S)
            target.append(past)
        return self.head(self.final_norm(x_BTD)), cache | {"target": target}
