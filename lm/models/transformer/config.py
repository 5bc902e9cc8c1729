"""The config of a transformer, and its checks."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax

from lm.models.attention import choose_kernel
from lm.models.layers import ACTIVATIONS, INITIALIZERS, MORE_ACTIVATIONS, platform
from lm.models.rotary import RotaryScaling
from lm.models.setting import Setting, check_chunk
from lm.task import Task

NORMS = ("layernorm", "rmsnorm", "none")
POSITIONS = ("learned", "rotary")
RESIDUAL = "residual"  # the name of the stream between blocks, for jax.checkpoint
PRODUCT = "product"  # that of activations and a matrix of weights
# What the backward pass may keep, by how much that is; None: everything. JAX's own policies
# for products do not see ours, which have a gradient of their own.
SAVEABLE = {
    "none": None,
    "dots": jax.checkpoint_policies.save_only_these_names(RESIDUAL, PRODUCT),
    "full": jax.checkpoint_policies.save_only_these_names(RESIDUAL),
}
BIASES = ("same", "none", "inputs", "all")
ROTARY = {"only": {"model.positions": ("rotary",)}}
ATTENTION = ("auto", "blockwise", "xla", "cudnn", "splash")


@dataclass
class TransformerConfig:
    # D, elements in the vector of a token
    width: int = field(default=256, metadata={"at_least": 1})
    # number of blocks; each has attention and an MLP
    num_layers: int = field(default=4, metadata={"at_least": 1, "at_most": 10_000})
    # N, attention heads in a block
    num_heads: int = field(default=4, metadata={"at_least": 1})
    # K, elements of a head; 0: width / num_heads
    head_width: int = field(default=0, metadata={"at_least": 0})
    # G, key/value heads, each shared by num_heads / G heads; 0: as many as heads
    num_kv_heads: int = field(default=0, metadata={"at_least": 0})
    # most tokens that a token attends to, itself included: the last ones; 0: all before it
    window: int = field(default=0, metadata={"at_least": 0})
    # the layers before this one attend to all before them, without the window
    window_from: int = field(default=0, metadata={"at_least": 0})
    # F, width inside the MLP; 0: 4 D, or for swiglu 8/3 D rounded up to a multiple of 32
    mlp_width: int = field(default=0, metadata={"at_least": 0})
    # activation function of the MLP; gelu: by tanh; gelu_exact: by the normal distribution;
    # swiglu: swish with a gate
    activation: str = field(
        default="gelu", metadata={"choices": (*ACTIVATIONS, "swiglu", *MORE_ACTIVATIONS)}
    )
    # norm before attention, before the MLP and before the head
    norm: str = field(default="layernorm", metadata={"choices": NORMS})
    # what a norm adds to the variance; 0: 1e-5, or for rmsnorm 1e-6
    norm_epsilon: float = field(default=0.0, metadata={"at_least": 0})
    # RMSNorm of each query and each key over its head, before they are rotated
    head_norm: bool = False
    # add the input of attention and of the MLP to its output
    residual: bool = True
    # how positions enter; learned: a row of a table; rotary: rotated queries and keys
    positions: str = field(default="learned", metadata={"choices": POSITIONS})
    # base of the rotary frequencies; the longest wavelength is about 2 pi base tokens
    rotary_base: float = field(default=10_000.0, metadata={"above": 0} | ROTARY)
    # changed frequencies, for texts longer than those of the first training
    rotary_scaling: RotaryScaling = field(default_factory=RotaryScaling, metadata=ROTARY)
    # most tokens that a text may have when it is continued, and the rows of the table of
    # learned positions; 0: data.seq_len
    context: int = field(default=0, metadata={"at_least": 0})
    # rows of the embedding and of the head, more than there are tokens; 0: as many
    vocab_rows: int = field(default=0, metadata={"at_least": 0})
    # file of word vectors, in word2vec's text format, that rows of the embedding begin
    # with; its content may not change, its place may; "": none
    embeddings: str = field(default="", metadata={"decides": False})
    # use the embedding, transposed, as the head
    tied: bool = True
    # give linear layers and LayerNorm a bias
    bias: bool = True
    # linear layers of attention with a bias; inputs: those of queries, keys and values;
    # same: as model.bias says
    attention_bias: str = field(default="same", metadata={"choices": BIASES})
    # share of elements that dropout zeroes in the outputs of attention, MLP and embedding
    dropout: float = field(default=0.0, metadata={"at_least": 0, "below": 1})
    # initialiser of matrices; gpt2: standard deviation 0.02, less for those whose product
    # is added to the residual stream; naive: 0.01
    init: str = field(default="gpt2", metadata={"choices": ("gpt2", *INITIALIZERS)})
    # what the backward pass computes again to save memory; none: nothing; dots: all but the
    # products with matrices of weights; full: each block
    remat: str = field(
        default="none", metadata={"choices": tuple(SAVEABLE), "decides": False}
    )
    # stack the layers' parameters and compile one layer that runs in a loop
    scan_layers: bool = False
    # attention kernel; auto: the platform's own
    attention: str = field(
        default="auto", metadata={"choices": ATTENTION, "decides": False}
    )
    # positions of a row whose logits exist at once, which saves memory; 0: all
    loss_chunk: int = field(default=0, metadata={"at_least": 0, "decides": False})

    reads: ClassVar[str] = "documents"
    trained_by: ClassVar[str] = "gradient"
    traces: ClassVar[bool] = True
    augments: ClassVar[bool] = True

    @property
    def hidden_width(self) -> int:
        if self.mlp_width:
            return self.mlp_width
        gated = self.activation == "swiglu"
        return -(-8 * self.width // 96) * 32 if gated else 4 * self.width

    @property
    def key_width(self) -> int:
        return self.head_width or self.width // self.num_heads

    @property
    def biases(self) -> str:
        """Which linear layers of attention have a bias: "none", "inputs" or "all"."""
        if self.attention_bias == "same":
            return "all" if self.bias else "none"
        return self.attention_bias

    def tensor_dims(self, vocab_size: int) -> tuple[tuple[str, int, int, str], ...]:
        """Return Task.tensor_dims, after Megatron-LM (Shoeybi et al. 2019, 3).

        Matrices that read the residual stream are split by output, matrices that write to
        it by input, and the vocabulary by token. If there are fewer key/value heads than
        devices, each device has all of them.
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

    def validate(self, setting: Setting) -> None:
        """Raise ValueError for fields that do not fit together, or not the platform."""
        if not self.head_width and self.width % self.num_heads:
            raise ValueError(
                f"model.num_heads {self.num_heads} does not divide model.width "
                f"{self.width}; change one of them, or set model.head_width"
            )
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_kv_heads {self.num_kv_heads} does not divide "
                f"model.num_heads {self.num_heads}; change one of them"
            )
        if self.positions == "rotary" and self.key_width % 2:
            raise ValueError(
                f"model.positions=rotary needs an even head width, not {self.key_width} "
                f"(model.head_width {self.head_width}, or model.width {self.width} / "
                f"model.num_heads {self.num_heads}); change one of them"
            )
        if self.window_from and self.window_from >= (self.num_layers if self.window else 0):
            raise ValueError(
                f"model.window_from is {self.window_from}, with model.window {self.window} "
                f"and {self.num_layers} layers, so no layer has a window, or none is "
                "before it; unset it, or set model.window and give a smaller number"
            )
        self.rotary_scaling.validate("model.rotary_scaling")
        self.validate_sizes(setting)
        check_chunk("model.loss_chunk", self.loss_chunk, setting)
        self.kernel(setting, platform())

    def validate_sizes(self, setting: Setting) -> None:
        """Raise ValueError if the tables are smaller than the data."""
        if self.context and self.context < setting.seq_len:
            raise ValueError(
                f"model.context {self.context} is less than data.seq_len "
                f"{setting.seq_len}; change one of them"
            )
        if self.vocab_rows and self.vocab_rows < setting.vocab_size:
            raise ValueError(
                f"model.vocab_rows {self.vocab_rows} is less than the "
                f"{setting.vocab_size} tokens of the vocabulary; change one of them"
            )

    def kernel(self, setting: Setting, platform: str) -> str:
        """Return the attention kernel on a platform; ValueError if it does not suit."""
        dtype, seq_len = setting.compute, setting.seq_len
        return choose_kernel(self.attention, dtype, self.key_width, seq_len, platform)

    def task(self, setting: Setting) -> Task:
        # Imported here, because the modules of the layers import this config.
        from lm.models.transformer.model import transformer_task

        return transformer_task(self, setting)

    def describe(self) -> str:
        return f"transformer, {self.num_layers} layers of {self.width}"
