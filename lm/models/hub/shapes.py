"""The shapes of models that can come from Hugging Face: a table for each, and no code.

A shape says what the tensors and the fields of config.json are called there, and what they
are here. To add one, enter it in SHAPES.

Shapes of arrays: D width, F width of the MLP, V rows of the vocabulary.
"""

from typing import Any, NamedTuple


class Tensor(NamedTuple):
    """Where one of our arrays is: a tensor of theirs, or one of `parts` beside each other.

    `name` has the number of the layer in braces. `part` counts along the last dim of ours.
    """

    name: str
    transposed: bool = False
    part: int = 0
    parts: int = 1


class Key(NamedTuple):
    """A field of config.json: ours of the same meaning, and its value where it is missing.

    `values` maps their values to ours; without it they are the same, and None is our 0.
    """

    field: str
    default: Any = ...  # it must not be missing
    values: dict[Any, Any] | None = None


class Shape(NamedTuple):
    architecture: str  # in `architectures` of config.json
    model_type: str
    prefix: str  # of all tensors but the head; files of the model without a head lack it
    tensors: dict[str, Tensor]  # by the path of ours; "layer" stands for the layers' path
    keys: dict[str, Key]
    fixed: dict[str, Any]  # fields of TransformerConfig that every such model has
    # Their fields that change what the model computes, with the only value known here.
    only: dict[str, Any] = {}
    switch: str = ""  # the field without which `sliding_window` has no effect; "": none
    no_weights: str = ""  # names of tensors that hold no weights: a regular expression


def matrix(name: str) -> Tensor:
    """nn.Linear multiplies by the transpose of its weight [outputs, inputs]."""
    return Tensor(name, transposed=True)


def third(name: str, part: int) -> Tensor:
    return Tensor(name, part=part, parts=3)


GPT2_TENSORS = {
    "embedding": Tensor("transformer.wte.weight"),
    "position_embedding": Tensor("transformer.wpe.weight"),
    "layer/attention_norm/scale": Tensor("transformer.h.{}.ln_1.weight"),
    "layer/attention_norm/bias": Tensor("transformer.h.{}.ln_1.bias"),
    "layer/attention/query/kernel": third("transformer.h.{}.attn.c_attn.weight", 0),
    "layer/attention/query/bias": third("transformer.h.{}.attn.c_attn.bias", 0),
    "layer/attention/key/kernel": third("transformer.h.{}.attn.c_attn.weight", 1),
    "layer/attention/key/bias": third("transformer.h.{}.attn.c_attn.bias", 1),
    "layer/attention/value/kernel": third("transformer.h.{}.attn.c_attn.weight", 2),
    "layer/attention/value/bias": third("transformer.h.{}.attn.c_attn.bias", 2),
    "layer/attention/out/kernel": Tensor("transformer.h.{}.attn.c_proj.weight"),
    "layer/attention/out/bias": Tensor("transformer.h.{}.attn.c_proj.bias"),
    "layer/mlp_norm/scale": Tensor("transformer.h.{}.ln_2.weight"),
    "layer/mlp_norm/bias": Tensor("transformer.h.{}.ln_2.bias"),
    "layer/mlp/up/kernel": Tensor("transformer.h.{}.mlp.c_fc.weight"),
    "layer/mlp/up/bias": Tensor("transformer.h.{}.mlp.c_fc.bias"),
    "layer/mlp/down/kernel": Tensor("transformer.h.{}.mlp.c_proj.weight"),
    "layer/mlp/down/bias": Tensor("transformer.h.{}.mlp.c_proj.bias"),
    "final_norm/scale": Tensor("transformer.ln_f.weight"),
    "final_norm/bias": Tensor("transformer.ln_f.bias"),
    "output/kernel": matrix("lm_head.weight"),
}

LLAMA_TENSORS = {
    "embedding": Tensor("model.embed_tokens.weight"),
    "layer/attention_norm/scale": Tensor("model.layers.{}.input_layernorm.weight"),
    "layer/attention/query/kernel": matrix("model.layers.{}.self_attn.q_proj.weight"),
    "layer/attention/query/bias": Tensor("model.layers.{}.self_attn.q_proj.bias"),
    "layer/attention/query_norm/scale": Tensor("model.layers.{}.self_attn.q_norm.weight"),
    "layer/attention/key/kernel": matrix("model.layers.{}.self_attn.k_proj.weight"),
    "layer/attention/key/bias": Tensor("model.layers.{}.self_attn.k_proj.bias"),
    "layer/attention/key_norm/scale": Tensor("model.layers.{}.self_attn.k_norm.weight"),
    "layer/attention/value/kernel": matrix("model.layers.{}.self_attn.v_proj.weight"),
    "layer/attention/value/bias": Tensor("model.layers.{}.self_attn.v_proj.bias"),
    "layer/attention/out/kernel": matrix("model.layers.{}.self_attn.o_proj.weight"),
    "layer/attention/out/bias": Tensor("model.layers.{}.self_attn.o_proj.bias"),
    "layer/mlp_norm/scale": Tensor("model.layers.{}.post_attention_layernorm.weight"),
    "layer/mlp/gate/kernel": matrix("model.layers.{}.mlp.gate_proj.weight"),
    "layer/mlp/gate/bias": Tensor("model.layers.{}.mlp.gate_proj.bias"),
    "layer/mlp/up/kernel": matrix("model.layers.{}.mlp.up_proj.weight"),
    "layer/mlp/up/bias": Tensor("model.layers.{}.mlp.up_proj.bias"),
    "layer/mlp/down/kernel": matrix("model.layers.{}.mlp.down_proj.weight"),
    "layer/mlp/down/bias": Tensor("model.layers.{}.mlp.down_proj.bias"),
    "final_norm/scale": Tensor("model.norm.weight"),
    "output/kernel": matrix("lm_head.weight"),
}

GPT2_KEYS = {
    "vocab_size": Key("vocab_rows"),
    "n_embd": Key("width"),
    "n_layer": Key("num_layers"),
    "n_head": Key("num_heads"),
    "n_inner": Key("mlp_width", None),
    "n_positions": Key("context"),
    "layer_norm_epsilon": Key("norm_epsilon", 1e-5),
    "tie_word_embeddings": Key("tied", True),
    "activation_function": Key(
        "activation",
        "gelu_new",
        {
            "gelu_new": "gelu",
            "gelu_pytorch_tanh": "gelu",
            "gelu_fast": "gelu",
            "gelu": "gelu_exact",
            "relu": "relu",
            "silu": "swish",
            "swish": "swish",
            "tanh": "tanh",
            "sigmoid": "sigmoid",
        },
    ),
}
LLAMA_KEYS = {
    "vocab_size": Key("vocab_rows"),
    "hidden_size": Key("width"),
    "num_hidden_layers": Key("num_layers"),
    "num_attention_heads": Key("num_heads"),
    "num_key_value_heads": Key("num_kv_heads", None),
    "head_dim": Key("head_width", None),
    "intermediate_size": Key("mlp_width"),
    "max_position_embeddings": Key("context"),
    "rms_norm_eps": Key("norm_epsilon", 1e-6),
    "tie_word_embeddings": Key("tied", False),
    "hidden_act": Key("activation", "silu", {"silu": "swiglu", "swish": "swiglu"}),
}
ATTENTION_BIAS = Key("attention_bias", False, {False: "none", True: "all"})
WINDOW = {
    "sliding_window": Key("window", 4096),
    "max_window_layers": Key("window_from", 28),
}
LLAMA_FIXED = {"norm": "rmsnorm", "positions": "rotary", "residual": True, "bias": False}
LLAMA_ONLY = {"partial_rotary_factor": 1.0}
FREQUENCIES = r"rotary_emb\.inv_freq$"

SHAPES = (
    Shape(
        "GPT2LMHeadModel",
        "gpt2",
        "transformer.",
        GPT2_TENSORS,
        GPT2_KEYS,
        {"norm": "layernorm", "positions": "learned", "residual": True, "bias": True},
        {
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        no_weights=r"\.attn\.(masked_)?bias$",
    ),
    Shape(
        "LlamaForCausalLM",
        "llama",
        "model.",
        LLAMA_TENSORS,
        LLAMA_KEYS
        | {
            "attention_bias": ATTENTION_BIAS,
            "mlp_bias": Key("bias", False),
        },
        {"norm": "rmsnorm", "positions": "rotary", "residual": True},
        LLAMA_ONLY,
        no_weights=FREQUENCIES,
    ),
    Shape(
        "MistralForCausalLM",
        "mistral",
        "model.",
        LLAMA_TENSORS,
        LLAMA_KEYS
        | {
            "num_key_value_heads": Key("num_kv_heads", 8),
            "sliding_window": WINDOW["sliding_window"],
        },
        LLAMA_FIXED | {"attention_bias": "none"},
        LLAMA_ONLY,
        no_weights=FREQUENCIES,
    ),
    Shape(
        "Qwen2ForCausalLM",
        "qwen2",
        "model.",
        LLAMA_TENSORS,
        LLAMA_KEYS | {"num_key_value_heads": Key("num_kv_heads", 32)} | WINDOW,
        LLAMA_FIXED | {"attention_bias": "inputs"},
        LLAMA_ONLY,
        switch="use_sliding_window",
        no_weights=FREQUENCIES,
    ),
    Shape(
        "Qwen3ForCausalLM",
        "qwen3",
        "model.",
        LLAMA_TENSORS,
        LLAMA_KEYS
        | {
            "num_key_value_heads": Key("num_kv_heads", 32),
            "head_dim": Key("head_width", 128),
            "attention_bias": ATTENTION_BIAS,
        }
        | WINDOW,
        LLAMA_FIXED | {"head_norm": True},
        LLAMA_ONLY,
        switch="use_sliding_window",
        no_weights=FREQUENCIES,
    ),
)
