"""Encoder-decoder models: the encoder reads a whole source, the decoder writes a target.

Both kinds are trained by teacher forcing: the decoder reads the true target up to each
position. The first `source_len` tokens of a row are the source, its end mark and padding;
the target follows (lm/data/rows/pairs.py). `hidden` returns only positions of the target.

transformer  pre-norm blocks in the shape of Llama (Vaswani et al. 2017; Touvron et al.
             2023); the decoder attends to the target and then to the encoder's output
recurrent    an encoder that reads in both directions, and a decoder with attention
             (Bahdanau et al. 2015; Luong et al. 2015; lm/models/seq2seq/recurrent.py)

Shapes: B batch, S source, T target, L length of the decoder's cache, D model width, N
heads, K head width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import jax
from flax import nnx

from lm.models.recurrent import CELLS, RecurrentConfig
from lm.models.seq2seq.recurrent import RecurrentSeq2Seq
from lm.models.seq2seq.transformer import (
    Streams,
    TransformerSeq2Seq,
    source_mask,
)
from lm.models.setting import Setting
from lm.models.transformer.config import TransformerConfig
from lm.task import (
    Batch,
    Key,
    Stages,
    Task,
    cut_graphs,
    inputs,
    next_token_loss,
    next_token_task,
    row_keys,
)

KINDS = ("transformer", "recurrent")


@dataclass
class Seq2SeqConfig:
    # kind of encoder and decoder
    kind: str = field(default="transformer", metadata={"choices": KINDS})
    # D, elements in the vector of a token
    width: int = field(default=256, metadata={"at_least": 1})
    # layers of the encoder; the decoder has as many
    num_layers: int = field(default=3, metadata={"at_least": 1, "at_most": 10_000})
    # N, attention heads in a layer; each is width / num_heads wide
    num_heads: int = field(
        default=4, metadata={"at_least": 1, "only": {"model.kind": ("transformer",)}}
    )
    # kind of recurrent cell
    cell: str = field(
        default="lstm",
        metadata={"choices": tuple(CELLS), "only": {"model.kind": ("recurrent",)}},
    )
    # file of word vectors, in word2vec's text format, that rows of the embedding begin
    # with; its content may not change, its place may; "": none
    embeddings: str = field(default="", metadata={"decides": False})
    # use the embedding, which source and target share, transposed as the head
    tied: bool = True
    # share of elements that dropout zeroes, as in the models without an encoder
    dropout: float = field(default=0.1, metadata={"at_least": 0, "below": 1})
    # share of each label's probability that is spread evenly over the vocabulary
    label_smoothing: float = field(default=0.1, metadata={"at_least": 0, "below": 1})

    reads: ClassVar[str] = "pairs"
    trained_by: ClassVar[str] = "gradient"
    traces: ClassVar[bool] = False
    augments: ClassVar[bool] = False

    @property
    def blocks(self) -> TransformerConfig:
        return TransformerConfig(
            width=self.width,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            activation="swiglu",
            norm="rmsnorm",
            positions="rotary",
            bias=False,
            dropout=self.dropout,
            tied=self.tied,
        )

    @property
    def cells(self) -> RecurrentConfig:
        return RecurrentConfig(
            cell=self.cell,
            width=self.width,
            num_layers=self.num_layers,
            dropout=self.dropout,
            tied=self.tied,
        )

    def validate(self, setting: Setting) -> None:
        """Raise ValueError for fields that do not fit together, or not the setting."""
        (self.blocks if self.kind == "transformer" else self.cells).validate(setting)

    def task(self, setting: Setting) -> Task:
        @jax.jit
        def build(key: Key) -> nnx.Module:
            rngs = nnx.Rngs(key)
            if self.kind == "transformer":
                return TransformerSeq2Seq(self.blocks, setting, rngs)
            return RecurrentSeq2Seq(self.cells, setting, rngs)

        task = next_token_task(build, 0, smoothing=self.label_smoothing)
        return task._replace(
            stages=seq2seq_stages(self, build, setting),
            hidden=("encoder", "layers", "attention"),
        )

    def describe(self) -> str:
        kind = self.cell.upper() if self.kind == "recurrent" else self.kind
        return f"{kind} with an encoder, {self.num_layers} + {self.num_layers} layers"


def seq2seq_stages(
    config: Seq2SeqConfig, build: Callable[[Key], nnx.Module], setting: Setting
) -> Stages:
    """Cut between the layers of the decoder; the carry holds both source and target.

    A recurrent decoder layer needs only the encoder layer of the same depth, so the encoder
    is cut with the decoder. A layer of a transformer's decoder needs the whole encoder, and
    the encoder's layers have another shape. So a transformer's encoder is part of `embed`,
    on the first stage: that stage has more work than the others, and every stage has a copy
    of the encoder's parameters.
    """
    outer_graph, layer_graph = cut_graphs(build)

    def mask(batch: Batch) -> jax.Array:
        tokens_BT, _ = inputs(batch)
        return source_mask(tokens_BT[:, : setting.source_part(tokens_BT.shape[1])])

    def embed(outer, batch, key) -> Streams:
        tokens_BT, _ = inputs(batch)
        return nnx.merge(outer_graph, outer).enter(tokens_BT, row_keys(batch, key))

    def layer(params, streams, batch, index, key) -> Streams:
        module = nnx.merge(layer_graph, params)
        return module(streams, mask(batch), index, row_keys(batch, key))

    def loss(outer, streams, batch):
        module = nnx.merge(outer_graph, outer)
        x_BTD = module.leave(streams, mask(batch))
        return next_token_loss(x_BTD, module.head, batch, 0, config.label_smoothing)

    return Stages(config.num_layers, embed, layer, loss)
