"""The choices that make a transformer, and what is wrong with some of them."""

from dataclasses import dataclass

import jax

from lm.models.layers import ACTIVATIONS, INITIALIZERS

NORMS = ("layernorm", "rmsnorm", "none")
POSITIONS = ("learned", "rotary")
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
    activation: str = "gelu"  # relu | gelu | tanh | sigmoid | swiglu
    norm: str = "layernorm"  # layernorm | rmsnorm | none
    residual: bool = True  # add what a sublayer takes in to what it gives
    positions: str = "learned"  # learned | rotary
    rotary_base: float = 10_000.0
    tied: bool = True  # the head is the transposed embedding
    bias: bool = True  # of the linear layers
    dropout: float = 0.0
    # gpt2 (0.02, residual scaled by depth) | naive (0.01) | xavier | he | orthogonal
    init: str = "gpt2"
    remat: str = "none"  # recompute in the backward pass: none | full | dots
    scan_layers: bool = False  # stack the layers, compile one, loop over it
    attention: str = "auto"  # auto (by platform) | blockwise | xla | cudnn | splash
    loss_chunk: int = 0  # positions whose logits exist at once; 0: all

    @property
    def hidden_width(self) -> int:
        if self.mlp_width:
            return self.mlp_width
        gated = self.activation == "swiglu"
        return -(-8 * self.width // 96) * 32 if gated else 4 * self.width

    def tensor_dims(self, vocab_size: int) -> tuple[tuple[str, int, int, str], ...]:
        """Say how each layer is split over devices (Shoeybi et al. 2019, Megatron-LM, 3).

        (pattern of the parameter's path, its dim from the last, the number of parts that it
        may be cut into, the name of that number). What reads the residual stream is split
        by output, what writes to it by input, the vocabulary by token. With fewer key/value
        heads than devices each device has them all.
        """
        heads, hidden = self.num_heads, self.hidden_width
        reads, writes = r"/(kernel|bias)$", r"/kernel$"
        kv = f"attention/(key|value){reads}"
        return (
            (f"attention/query{reads}", -1, heads, "model.num_heads"),
            (kv, -1, self.num_kv_heads or heads, ""),
            (f"attention/out{writes}", -2, heads, "model.num_heads"),
            (f"mlp/(up|gate){reads}", -1, hidden, "the hidden width model.mlp_width"),
            (f"mlp/down{writes}", -2, hidden, "the hidden width model.mlp_width"),
            (r"(^|/)embedding$", -2, vocab_size, "the vocabulary size"),
            (f"(^|/)output{writes}", -1, vocab_size, "the vocabulary size"),
        )

    def validate(self, seq_len: int) -> None:
        for name, options in [
            ("activation", (*ACTIVATIONS, "swiglu")),
            ("norm", NORMS),
            ("positions", POSITIONS),
            ("init", ("gpt2", *INITIALIZERS)),
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
