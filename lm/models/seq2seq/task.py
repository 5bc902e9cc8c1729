"""Encoder-decoder models: a source text is read whole, then a target is written.

Both kinds are trained by teacher forcing: the decoder is given the true target so far. In a
row of T' tokens the first `source_len` are the source, up to its end mark, and the others
the target (lm/data/rows/pairs.py); `hidden` covers the target alone.

transformer: pre-norm blocks in the shape of Llama (Vaswani et al. 2017; Touvron et al.
2023), whose decoder attends to itself and then to the encoder's output.
recurrent: an encoder in both directions and a decoder with attention (Bahdanau et al. 2015;
Luong et al. 2015, lm/models/seq2seq/recurrent.py).

Shapes: B batch, S source, T target, L length of the decoder's cache, D model width, N
heads, K head width, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from flax import nnx

from lm.models.recurrent import CELLS, RecurrentConfig
from lm.models.seq2seq.recurrent import RecurrentSeq2Seq
from lm.models.seq2seq.transformer import TransformerSeq2Seq
from lm.models.setting import Setting
from lm.models.transformer.config import TransformerConfig
from lm.task import Task, next_token_task

KINDS = ("transformer", "recurrent")


@dataclass
class Seq2SeqConfig:
    # of encoder and decoder
    kind: str = field(default="transformer", metadata={"choices": KINDS})
    width: int = field(default=256, metadata={"at_least": 1})  # D
    # of the encoder, and as many of the decoder
    num_layers: int = field(default=3, metadata={"at_least": 1, "at_most": 10_000})
    # N; the head width is width / num_heads
    num_heads: int = field(
        default=4, metadata={"at_least": 1, "only": {"model.kind": ("transformer",)}}
    )
    # the recurrence
    cell: str = field(
        default="lstm",
        metadata={"choices": tuple(CELLS), "only": {"model.kind": ("recurrent",)}},
    )
    tied: bool = True  # the head is the transposed embedding, common to both sides
    # as in the decoder-only models
    dropout: float = field(default=0.1, metadata={"at_least": 0, "below": 1})
    # share of each label that is spread over the vocabulary
    label_smoothing: float = field(default=0.1, metadata={"at_least": 0, "below": 1})

    reads: ClassVar[str] = "pairs"
    trained_by: ClassVar[str] = "gradient"
    traces: ClassVar[bool] = False

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
        """Check what needs more than one field; ValueError."""
        (self.blocks if self.kind == "transformer" else self.cells).validate(setting)

    def task(self, setting: Setting) -> Task:
        def build(rngs: nnx.Rngs) -> nnx.Module:
            sizes = setting.vocab_size, setting.source_len, rngs
            if self.kind == "transformer":
                return TransformerSeq2Seq(self.blocks, *sizes)
            return RecurrentSeq2Seq(self.cells, *sizes)

        task = next_token_task(build, 0, smoothing=self.label_smoothing)
        return task._replace(hidden=("encoder", "decoder", "attention"))

    def describe(self) -> str:
        kind = self.cell.upper() if self.kind == "recurrent" else self.kind
        return f"{kind} with an encoder, {self.num_layers} + {self.num_layers} layers"
