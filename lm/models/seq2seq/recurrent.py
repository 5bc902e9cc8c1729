"""The recurrent encoder-decoder with attention; see lm/models/seq2seq/task.py.

Each layer of the encoder runs in both directions and adds the two outputs (Amodei et al.
2016, Deep Speech 2, 3.3). The sum of its two last states is the first state of the
decoder's layer of the same depth.

The decoder first runs over the whole target. Then each of its states attends to the source
by a bilinear score (Luong et al. 2015, 3.1, "general"). All positions attend at once,
because what a position attended to is not an input of the next.

Shapes: B batch, S source, T target, L length of the cache, D width, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lm.models.layers import dropout, lookup, vocabulary_logits
from lm.models.recurrence import Carry, output
from lm.models.recurrent import Layer, RecurrentConfig, embedding_scale
from lm.models.seq2seq.transformer import Streams, source_mask
from lm.models.setting import Setting

MASKED = -1e30  # finite: the gradient of an infinity is not a number


class BothDirections(nnx.Module):
    def __init__(self, config: RecurrentConfig, rngs: nnx.Rngs):
        self.onward, self.backward = Layer(config, rngs), Layer(config, rngs)

    def __call__(self, x_BSD: jax.Array, mask_BS: jax.Array) -> tuple[jax.Array, Carry]:
        """Return the outputs y_BSD and the last states, each summed over directions."""
        zeros = self.onward.zeros(x_BSD.shape[:1], x_BSD.dtype)
        last_B = jnp.sum(mask_BS, 1) - 1
        onward = self.onward.states(x_BSD, zeros, None)
        # Backwards the padding comes first, so zero the state at the last token.
        first_BS = jnp.flip(jnp.arange(mask_BS.shape[1]) == last_B[:, None], 1)
        backward = self.backward.states(jnp.flip(x_BSD, 1), zeros, first_BS)

        def last(onward_BSD: jax.Array, backward_BSD: jax.Array) -> jax.Array:
            return onward_BSD[jnp.arange(len(last_B)), last_B] + backward_BSD[:, -1]

        y_BSD = output(onward) + jnp.flip(output(backward), 1)
        return y_BSD, jax.tree.map(last, onward, backward)


class LayerPair(nnx.Module):
    """The encoder's layer and the decoder's layer of one depth.

    A layer of the decoder needs only the last states of the encoder's layer of the same
    depth. The attention to the source comes after the last layer. So both sides can be cut
    at the same depths.
    """

    def __init__(self, encoder: BothDirections, decoder: Layer, config: RecurrentConfig):
        self.encoder, self.decoder = encoder, decoder
        self.dropout, self.num_layers = config.dropout, config.num_layers

    def __call__(self, streams: Streams, mask_BS, index, row_keys_B) -> Streams:
        """Run both sides; `index` is the number of this pair."""
        source_BSD, x_BTD = streams
        source_BSD, carry = self.encoder(source_BSD, mask_BS)
        x_BTD = output(self.decoder.states(x_BTD, carry, None))
        site = index + 1
        source_BSD = dropout(source_BSD, self.dropout, row_keys_B, site)
        site += self.num_layers + 1  # the decoder's sites come after the encoder's
        return source_BSD, dropout(x_BTD, self.dropout, row_keys_B, site)


def make_pair(config: RecurrentConfig, rngs: nnx.Rngs) -> LayerPair:
    return LayerPair(BothDirections(config, rngs), Layer(config, rngs), config)


class GlobalAttention(nnx.Module):
    """tanh(W [context; state]); the context is a weighted mean of the source (Luong)."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        init = nnx.initializers.xavier_uniform()
        self.score = nnx.Linear(width, width, use_bias=False, kernel_init=init, rngs=rngs)
        self.out = nnx.Linear(2 * width, width, use_bias=False, kernel_init=init, rngs=rngs)

    def __call__(self, x_BTD, source_BSD, mask_BS) -> jax.Array:
        scores_BTS = jnp.einsum("btd,bsd->bts", self.score(x_BTD), source_BSD)
        scores_BTS = jnp.where(mask_BS[:, None], scores_BTS.astype(jnp.float32), MASKED)
        weights_BTS = jax.nn.softmax(scores_BTS).astype(x_BTD.dtype)
        context_BTD = jnp.einsum("bts,bsd->btd", weights_BTS, source_BSD)
        return jnp.tanh(self.out(jnp.concatenate([context_BTD, x_BTD], -1)))


class RecurrentSeq2Seq(nnx.Module):
    def __init__(self, config: RecurrentConfig, setting: Setting, rngs: nnx.Rngs):
        c, vocab_size = config, setting.vocab_size
        self.config, self.setting = c, setting
        table_init = nnx.initializers.normal(c.width**-0.5)
        self.embedding = nnx.Param(table_init(rngs.params(), (vocab_size, c.width)))
        layers = range(c.num_layers)
        encoder = [BothDirections(c, rngs) for _ in layers]
        decoder = [Layer(c, rngs) for _ in layers]
        pairs = zip(encoder, decoder, strict=True)
        self.layers = nnx.List([LayerPair(*pair, c) for pair in pairs])
        self.attention = GlobalAttention(c.width, rngs)
        self.output = (
            None
            if c.tied
            else nnx.Linear(
                c.width, vocab_size, use_bias=False, kernel_init=table_init, rngs=rngs
            )
        )

    def embed(self, tokens_BT: jax.Array) -> jax.Array:
        return lookup(self.embedding, tokens_BT) * embedding_scale(self.config.width)

    def enter(self, tokens_BT: jax.Array, row_keys_B) -> Streams:
        """Return the input of the first pair of layers."""
        rate, num_sites = self.config.dropout, self.config.num_layers + 1
        source = self.setting.source_part(tokens_BT.shape[1])
        source_BS, target_BT = jnp.split(tokens_BT, [source], axis=1)
        source_BSD = dropout(self.embed(source_BS), rate, row_keys_B, 0)
        return source_BSD, dropout(self.embed(target_BT), rate, row_keys_B, num_sites)

    def leave(self, streams: Streams, mask_BS: jax.Array) -> jax.Array:
        """Return x_BTD for the positions of the target, from the last pair's output."""
        source_BSD, x_BTD = streams
        return self.attention(x_BTD, source_BSD, mask_BS)

    def hidden(self, tokens_BT, segments_BT, row_keys_B) -> jax.Array:
        """Return x_BTD for the positions of the target; without keys, without dropout."""
        source = self.setting.source_part(tokens_BT.shape[1])
        mask_BS = source_mask(tokens_BT[:, :source])
        streams = self.enter(tokens_BT, row_keys_B)
        for index, pair in enumerate(self.layers):
            streams = pair(streams, mask_BS, index, row_keys_B)
        return self.leave(streams, mask_BS)

    def head(self, x_BTD: jax.Array) -> jax.Array:
        return vocabulary_logits(x_BTD, self.embedding, self.output)

    def cache(self, batch_size: int, length: int) -> dict[str, Any]:
        return {
            "mask": jnp.zeros((batch_size, self.setting.source_len), bool),
            "source": jnp.zeros((batch_size, self.setting.source_len, self.config.width)),
            "target": [p.decoder.zeros((batch_size, 1 + length)) for p in self.layers],
        }

    def encode(self, cache: dict[str, Any], source_BS: jax.Array) -> dict[str, Any]:
        source_BSD, mask_BS, target = self.embed(source_BS), source_mask(source_BS), []
        for pair, past in zip(self.layers, cache["target"], strict=True):
            source_BSD, carry = pair.encoder(source_BSD, mask_BS)
            # The decoder begins with the state before its first position.
            target.append(jax.tree.map(lambda x, new: x.at[:, 0].set(new), past, carry))
        return {"mask": mask_BS, "source": source_BSD, "target": target}

    def decode(self, cache: dict[str, Any], tokens_BT: jax.Array, start_B: jax.Array):
        """Return logits_BTV and the cache; the tokens of a row begin at start_B."""
        x_BTD, target = self.embed(tokens_BT), []
        for pair, past in zip(self.layers, cache["target"], strict=True):
            x_BTD, past = pair.decoder.decode(x_BTD, past, start_B)
            target.append(past)
        x_BTD = self.attention(x_BTD, cache["source"], cache["mask"])
        return self.head(x_BTD), cache | {"target": target}
