"""Decoder-only transformer in the shape of GPT-2, of Llama, or between the two.

It is a stack of residual blocks with norms before the sublayers (Radford et al. 2019;
Touvron et al. 2023). A row may hold several documents, each in a segment of its own:
attention stays inside a segment, and positions begin again with it. The module knows
nothing of devices.

Shapes: B batch, T time, S cache length, D model width, N heads, G key/value heads,
K head width, F hidden width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from operator import itemgetter

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.scheduling_groups import xla_metadata_call

from lm.models.attention import (
    attend,
    attend_cached,
    is_split_twice,
)
from lm.models.layers import (
    ACTIVATIONS,
    INITIALIZERS,
    MORE_ACTIVATIONS,
    Norm,
    dropout,
    lookup,
    matmul,
    one_core_a_device,
    platform,
    vocabulary_logits,
)
from lm.models.rotary import positions_in_segment, rotate
from lm.models.setting import Setting
from lm.models.transformer.config import PRODUCT, RESIDUAL, SAVEABLE, TransformerConfig
from lm.task import (
    Key,
    Stages,
    Task,
    cut_graphs,
    inputs,
    layered_stages,
    next_token_loss,
    next_token_task,
    row_keys,
)


def transformer_task(config: TransformerConfig, setting: Setting) -> Task:
    """Return the Task of a transformer, with stages and tensor dims."""

    @jax.jit
    def build(key: Key) -> Transformer:
        return Transformer(config, setting, nnx.Rngs(key))

    task = next_token_task(build, config.loss_chunk, trace_norms=setting.trace_norms)
    return task._replace(
        stages=transformer_stages(config, setting, build),
        tensor_dims=config.tensor_dims(config.vocab_rows or setting.vocab_size),
        hidden=("layers", "scanned_layers"),
        context=config.context or setting.seq_len,
    )


def transformer_stages(
    config: TransformerConfig,
    setting: Setting,
    build: Callable[[Key], "Transformer"],
) -> Stages:
    """Cut between blocks."""
    outer_graph, block_graph = cut_graphs(build)

    def embed(outer, batch, key) -> jax.Array:
        return nnx.merge(outer_graph, outer).enter(*inputs(batch), row_keys(batch, key))

    def layer(params, x_BTD, batch, index, key) -> tuple[jax.Array, jax.Array]:
        tokens_BT, segments_BT = inputs(batch)
        segments_BT = heeded(segments_BT, setting.packed)
        positions_BT = positions_in_segment(tokens_BT, segments_BT)
        keys_B = row_keys(batch, key)

        def run(x_BTD, params):
            block = nnx.merge(block_graph, params)
            return run_block(x_BTD, block, index, positions_BT, segments_BT, keys_B)

        x_BTD = checkpoint_name(one_layer(config, run)(x_BTD, params), RESIDUAL)
        return x_BTD, x_BTD

    def loss(outer, x_BTD, batch):
        module = nnx.merge(outer_graph, outer)
        x_BTD = module.final_norm(x_BTD)
        return next_token_loss(x_BTD, module.head, batch, config.loss_chunk)

    return layered_stages(config.num_layers, embed, layer, loss, setting.trace_norms)


def one_layer(config: TransformerConfig, layer: Callable) -> Callable:
    """Return a layer with the config's rematerialisation, as a call where that is faster.

    In a loop, as with `scan_layers`, a layer is a computation of its own already.
    """
    if config.remat != "none":
        layer = jax.checkpoint(layer, policy=SAVEABLE[config.remat])
    if not config.scan_layers and one_core_a_device():
        layer = xla_metadata_call(layer, inlineable="false")
    return layer


def initializer(config: TransformerConfig, residual: bool = False):
    """Return the initialiser of a weight matrix.

    gpt2 is a normal distribution with the standard deviation 0.02, divided by
    sqrt(2 layers) for matrices that write to the residual stream (Radford et al. 2019,
    2.3). The other names are those of INITIALIZERS.
    """
    if config.init in INITIALIZERS:
        return INITIALIZERS[config.init]
    scale = (2 * config.num_layers) ** -0.5 if residual else 1.0
    return nnx.initializers.normal(0.02 * scale)


def linear(
    config: TransformerConfig,
    rngs: nnx.Rngs,
    num_in: int,
    num_out: int,
    residual: bool = False,
    bias: bool | None = None,
) -> nnx.Linear:
    """Return a linear layer, with a bias if `bias` says so; None: if the config does."""
    return nnx.Linear(
        num_in,
        num_out,
        use_bias=config.bias if bias is None else bias,
        kernel_init=initializer(config, residual),
        dot_general=lambda x, w, *_, **__: checkpoint_name(matmul(x, w), PRODUCT),
        rngs=rngs,
    )


def unchanged(x_BTD: jax.Array) -> jax.Array:
    return x_BTD


def norm(config: TransformerConfig) -> Callable[[jax.Array], jax.Array]:
    if config.norm == "none":
        return unchanged
    return Norm(config.width, config.norm == "rmsnorm", config.bias, config.norm_epsilon)


class Attention(nnx.Module):
    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        c = config
        self.num_heads = c.num_heads
        self.num_kv_heads = c.num_kv_heads or c.num_heads
        self.rotary_base = c.rotary_base if c.positions == "rotary" else None
        self.rotary_scaling = c.rotary_scaling
        self.implementation = c.attention
        self.window, self.window_from = c.window, c.window_from
        all_width, kv_width = c.num_heads * c.key_width, self.num_kv_heads * c.key_width

        has_bias = c.biases != "none"
        self.query = linear(c, rngs, c.width, all_width, bias=has_bias)
        self.key = linear(c, rngs, c.width, kv_width, bias=has_bias)
        self.value = linear(c, rngs, c.width, kv_width, bias=has_bias)
        self.out = linear(c, rngs, all_width, c.width, True, bias=c.biases == "all")
        norms = [Norm(c.key_width, True, False, c.norm_epsilon) for _ in range(2)]
        self.query_norm, self.key_norm = norms if c.head_norm else (unchanged, unchanged)

    def project(self, x_BTD: jax.Array, positions_BT: jax.Array):
        batch, time, _ = x_BTD.shape
        q_BTNK = self.query(x_BTD).reshape(batch, time, self.num_heads, -1)
        k_BTGK = self.key(x_BTD).reshape(batch, time, self.num_kv_heads, -1)
        v_BTGK = self.value(x_BTD).reshape(batch, time, self.num_kv_heads, -1)
        q_BTNK, k_BTGK = self.query_norm(q_BTNK), self.key_norm(k_BTGK)
        if self.rotary_base is not None:
            given = positions_BT, self.rotary_base, self.rotary_scaling
            q_BTNK, k_BTGK = rotate(q_BTNK, *given), rotate(k_BTGK, *given)
        return q_BTNK, k_BTGK, v_BTGK

    def __call__(self, x_BTD, positions_BT, segments_BT, index=0) -> jax.Array:
        """Return y_BTD, as layer number `index`, on which the window may depend."""

        def within(window: int) -> Callable:
            return lambda *qkv: attend(*qkv, segments_BT, self.implementation, window)

        qkv = self.project(x_BTD, positions_BT)
        if self.window_from:
            y_BTNK = jax.lax.cond(
                index < self.window_from, within(0), within(self.window), *qkv
            )
        else:
            y_BTNK = within(self.window)(*qkv)
        return self.out(y_BTNK.reshape(*x_BTD.shape[:2], -1))

    def decode(self, x_BTD, positions_BT, cache: tuple[jax.Array, jax.Array], index=0):
        """Attend to the cache k_BSGK, v_BSGK after writing these positions into it."""
        q_BTNK, k_BTGK, v_BTGK = self.project(x_BTD, positions_BT)
        rows_B1 = jnp.arange(x_BTD.shape[0])[:, None]
        k_BSGK = cache[0].at[rows_B1, positions_BT].set(k_BTGK.astype(cache[0].dtype))
        v_BSGK = cache[1].at[rows_B1, positions_BT].set(v_BTGK.astype(cache[1].dtype))
        # Slots after the position of a row are empty, or hold padding of its prompt.
        mask_BTS = jnp.arange(k_BSGK.shape[1]) <= positions_BT[:, :, None]
        if self.window and index >= self.window_from:
            first_BT1 = positions_BT[:, :, None] - self.window + 1
            mask_BTS &= jnp.arange(k_BSGK.shape[1]) >= first_BT1
        y_BTNK = attend_cached(q_BTNK, k_BSGK, v_BSGK, mask_BTS[:, None])
        return self.out(y_BTNK.reshape(*x_BTD.shape[:2], -1)), (k_BSGK, v_BSGK)


class MLP(nnx.Module):
    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        c = config
        gated = c.activation == "swiglu"

        self.activation = c.activation
        self.up = linear(c, rngs, c.width, c.hidden_width)
        self.gate = linear(c, rngs, c.width, c.hidden_width) if gated else None
        self.down = linear(c, rngs, c.hidden_width, c.width, residual=True)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        h_BTF = self.up(x_BTD)
        if self.gate is not None:
            h_BTF = jax.nn.silu(self.gate(x_BTD)) * h_BTF
        else:
            h_BTF = (ACTIVATIONS | MORE_ACTIVATIONS)[self.activation](h_BTF)
        return self.down(h_BTF)


class Block(nnx.Module):
    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.dropout, self.residual = config.dropout, config.residual
        self.attention_norm = norm(config)
        self.attention = Attention(config, rngs)
        self.mlp_norm = norm(config)
        self.mlp = MLP(config, rngs)

    def __call__(self, x_BTD, positions_BT, segments_BT, row_keys_B, index) -> jax.Array:
        y_BTD = self.attention_norm(x_BTD)
        y_BTD = self.attention(y_BTD, positions_BT, segments_BT, index)
        x_BTD = self.join(x_BTD, dropout(y_BTD, self.dropout, row_keys_B, 0))
        y_BTD = self.mlp(self.mlp_norm(x_BTD))
        return self.join(x_BTD, dropout(y_BTD, self.dropout, row_keys_B, 1))

    def join(self, x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
        return x_BTD + y_BTD if self.residual else y_BTD

    def decode(self, x_BTD, positions_BT, cache, index: int):
        y_BTD, cache = self.attention.decode(
            self.attention_norm(x_BTD), positions_BT, cache, index
        )
        x_BTD = self.join(x_BTD, y_BTD)
        return self.join(x_BTD, self.mlp(self.mlp_norm(x_BTD))), cache


def heeded(segments_BT: jax.Array, packed: bool) -> jax.Array | None:
    """Return the segments that attention must heed.

    None where a row is one segment: the kernels are faster without a mask.
    """
    return segments_BT if packed else None


def run_block(x_BTD, block: Block, index, positions_BT, segments_BT, row_keys_B):
    """Run layer number `index`; its dropout has a key for each row and layer."""
    if row_keys_B is not None:
        row_keys_B = jax.vmap(jax.random.fold_in, (0, None))(row_keys_B, index)
    return block(x_BTD, positions_BT, segments_BT, row_keys_B, index)


class Transformer(nnx.Module):
    def __init__(
        self,
        config: TransformerConfig,
        setting: Setting,
        rngs: nnx.Rngs,
    ):
        c, vocab_size = config, config.vocab_rows or setting.vocab_size
        self.config, self.packed = c, setting.packed
        # He and Xavier suit matrices that sum over inputs; a table only looks up rows.
        table_init = nnx.initializers.normal(0.02)
        # Not nnx.Embed, which casts its table back to the type that it was made with.
        self.embedding = nnx.Param(table_init(rngs.params(), (vocab_size, c.width)))
        self.position_embedding = (
            nnx.Param(table_init(rngs.params(), (c.context or setting.seq_len, c.width)))
            if c.positions == "learned"
            else None
        )
        # Trace one block for all layers: NNX's tracing is quadratic in the keys drawn.
        make_block = jax.jit(lambda key: Block(c, nnx.Rngs(key)))
        keys_L = jax.random.split(rngs.params(), c.num_layers)
        if c.scan_layers:
            self.layers, self.scanned_layers = None, jax.vmap(make_block)(keys_L)
        else:
            self.layers = nnx.List([make_block(key) for key in keys_L])
            self.scanned_layers = None
        self.final_norm = norm(c)
        self.output = (
            None
            if c.tied
            else nnx.Linear(
                c.width, vocab_size, use_bias=False, kernel_init=table_init, rngs=rngs
            )
        )

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        x_BTD = lookup(self.embedding, tokens_BT)
        if self.position_embedding is not None:
            x_BTD += lookup(self.position_embedding, positions_BT)
        return x_BTD

    def enter(self, tokens_BT, segments_BT, row_keys_B) -> jax.Array:
        """Return x_BTD, the input of the first layer."""
        segments_BT = heeded(segments_BT, self.packed)
        x_BTD = self.embed(tokens_BT, positions_in_segment(tokens_BT, segments_BT))
        return dropout(x_BTD, self.config.dropout, row_keys_B, self.config.num_layers)

    def hidden(self, tokens_BT, segments_BT, row_keys_B) -> jax.Array:
        """Return x_BTD, the final hidden states; without keys, without dropout."""
        return self.outputs(tokens_BT, segments_BT, row_keys_B, lambda x_BTD: None)[0]

    def outputs(self, tokens_BT, segments_BT, row_keys_B, measure: Callable):
        """Return the result of `hidden`, and `measure` of the output of each layer."""
        x_BTD = self.enter(tokens_BT, segments_BT, row_keys_B)
        segments_BT = heeded(segments_BT, self.packed)
        positions_BT = positions_in_segment(tokens_BT, segments_BT)

        def layer(x_BTD, block: Block, index) -> jax.Array:
            return run_block(x_BTD, block, index, positions_BT, segments_BT, row_keys_B)

        layer = one_layer(self.config, layer)
        if self.scanned_layers is None:
            # Traced once for all layers. XLA's partitioner (JAX 0.10, for TPUs) aborts on a
            # shard_map inside another one where it lies in a function that is called twice.
            layer = jax.jit(layer, inline=is_split_twice() and platform() != "cpu")
            measured = []
            for index, block in enumerate(self.layers):
                x_BTD = checkpoint_name(layer(x_BTD, block, index), RESIDUAL)
                measured.append(measure(x_BTD))
            return self.final_norm(x_BTD), measured

        def body(x_BTD, scanned):
            x_BTD = checkpoint_name(layer(x_BTD, *scanned), RESIDUAL)
            return x_BTD, measure(x_BTD)

        scanned_L = self.scanned_layers, jnp.arange(self.config.num_layers)
        x_BTD, measured_L = jax.lax.scan(body, x_BTD, scanned_L)
        return self.final_norm(x_BTD), measured_L

    def blocks(self) -> Sequence[Block]:
        """Return the layers one by one, scanned or not."""
        if self.scanned_layers is None:
            return self.layers
        indices = range(self.config.num_layers)
        return [jax.tree.map(itemgetter(i), self.scanned_layers) for i in indices]

    def head(self, x_BTD: jax.Array) -> jax.Array:
        return vocabulary_logits(x_BTD, self.embedding, self.output)

    def cache(self, batch_size: int, length: int):
        c = self.config
        shape = (batch_size, length, c.num_kv_heads or c.num_heads, c.key_width)
        return [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(c.num_layers)]

    def decode(self, cache, tokens_BT: jax.Array, start_B: jax.Array):
        """Return logits_BTV and the cache; the tokens of a row begin at start_B."""
        positions_BT = start_B[:, None] + jnp.arange(tokens_BT.shape[1])
        x_BTD = self.embed(tokens_BT, positions_BT)
        new_cache = []
        for index, block in enumerate(self.blocks()):
            x_BTD, layer_cache = block.decode(x_BTD, positions_BT, cache[index], index)
            new_cache.append(layer_cache)
        return self.head(self.final_norm(x_BTD)), new_cache
