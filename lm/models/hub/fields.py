"""config.json of Hugging Face to the fields of a transformer's config, and back."""

from dataclasses import asdict, replace
from typing import Any

from lm.models.hub.shapes import SHAPES, Key, Shape
from lm.models.rotary import RotaryScaling
from lm.models.transformer.config import TransformerConfig

REQUIRED = ...
# Fields that say how a model is trained or computed, not what it computes.
FREE = ("dropout", "init", "remat", "scan_layers", "attention", "loss_chunk", "embeddings")
BASE = 10_000.0
SCALINGS = {  # rope_type there -> kind here
    "default": "none",
    "linear": "linear",
    "llama3": "llama3",
}
SCALING_KEYS = {
    "factor": "factor",
    "low_freq_factor": "slowest",
    "high_freq_factor": "fastest",
    "original_max_position_embeddings": "context",
}
SCALING_FIELDS = {"none": 0, "linear": 1, "llama3": 4}  # how many of these a kind has


def find_shape(values: dict[str, Any], source: str) -> Shape:
    """Return the shape that a config.json names; ValueError if it is not known here."""
    given = values.get("architectures") or values.get("model_type")
    name = given[0] if isinstance(given, list) else given
    for shape in SHAPES:
        if name in (shape.architecture, shape.model_type):
            return shape
    known = ", ".join(shape.architecture for shape in SHAPES)
    raise ValueError(
        f"{source} is of the architecture {name!r}; those that can be read are {known}"
    )


def from_theirs(
    shape: Shape, values: dict[str, Any], config: TransformerConfig, source: str
) -> TransformerConfig:
    """Return `config` with all that decides what the model computes as `values` say.

    Raises ValueError for a field that is missing, or has a value that is not known here.
    `source` names the file in errors.
    """
    plain = TransformerConfig()
    free = {name: getattr(config, name) for name in FREE}
    check_only(shape, values, source)
    read = {
        key.field: one_value(name, key, values, source) for name, key in shape.keys.items()
    }
    made = replace(plain, **(free | shape.fixed | read))
    if made.positions == "rotary":
        base, scaling = rotary_of(values, source)
        made = replace(made, rotary_base=base, rotary_scaling=scaling)
    return with_window(shape, values, made, source)


def check_only(shape: Shape, values: dict[str, Any], source: str) -> None:
    if "quantization_config" in values:
        raise ValueError(
            f"{source} has a quantization_config: its weights are quantised and cannot be "
            "read; give a folder of float32, bfloat16 or float16"
        )
    for name, known in shape.only.items():
        if values.get(name, known) != known:
            raise ValueError(
                f"{source} has {name} {values[name]!r}; of {shape.architecture} only "
                f"{known!r} is known here"
            )


def one_value(name: str, key: Key, values: dict[str, Any], source: str) -> Any:
    value = values.get(name, key.default)
    if value is REQUIRED or (value is None and key.default is REQUIRED):
        raise ValueError(f"{source} has no field {name}; it is not the config of a model")
    if key.values is not None:
        if not isinstance(value, str | int) or value not in key.values:
            known = ", ".join(map(repr, key.values))
            raise ValueError(f"{source} has {name} {value!r}; known here are {known}")
        return key.values[value]
    wanted = type(getattr(TransformerConfig(), key.field))
    value = 0 if value is None else value
    if isinstance(value, bool) != (wanted is bool) or not isinstance(
        value, int | float if wanted is float else wanted
    ):
        raise ValueError(f"{source} has {name} {value!r}; expected a {wanted.__name__}")
    return wanted(value)


def rotary_of(values: dict[str, Any], source: str) -> tuple[float, RotaryScaling]:
    """Return the base and the scaling, from the names of either version of the library."""
    given = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise ValueError(f"{source} has rotary frequencies {given!r}; expected an object")
    base = given.get("rope_theta", values.get("rope_theta")) or BASE
    if isinstance(base, bool) or not isinstance(base, int | float):
        raise ValueError(f"{source} has rope_theta {base!r}; expected a number")
    kind = given.get("rope_type", given.get("type")) or "default"
    if kind not in SCALINGS or given.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"{source} has rotary frequencies of the type {kind!r} ({given}); known here "
            f"are {', '.join(SCALINGS)}, over whole heads"
        )
    names = list(SCALING_KEYS)[: SCALING_FIELDS[SCALINGS[kind]]]
    if missing := [name for name in names if name not in given]:
        raise ValueError(f"{source}: the rotary type {kind!r} needs {', '.join(missing)}")
    parts = {SCALING_KEYS[name]: given[name] for name in names}
    return float(base), RotaryScaling(SCALINGS[kind], **parts)


def with_window(
    shape: Shape, values: dict[str, Any], config: TransformerConfig, source: str
) -> TransformerConfig:
    """Return the config without a window that no layer has."""
    if not config.window:
        return replace(config, window_from=0)
    if not shape.switch:
        return config
    first = config.window_from
    if types := values.get("layer_types"):
        num = config.num_layers
        first = types.count("full_attention") if isinstance(types, list) else num
        wanted = ["full_attention"] * first + ["sliding_attention"] * (num - first)
        if types != wanted or first > num:
            raise ValueError(
                f"{source} has layer_types {types}; known here are first full_attention, "
                f"then sliding_attention, for {config.num_layers} layers"
            )
    if not values.get(shape.switch, False) or first >= config.num_layers:
        return replace(config, window=0, window_from=0)
    return replace(config, window_from=first)


def whole(config: TransformerConfig, vocab_size: int, seq_len: int) -> TransformerConfig:
    """Return the config with the sizes that a 0 stands for."""
    return replace(
        config,
        num_kv_heads=config.num_kv_heads or config.num_heads,
        head_width=config.key_width,
        mlp_width=config.hidden_width,
        norm_epsilon=config.norm_epsilon or (1e-6 if config.norm == "rmsnorm" else 1e-5),
        attention_bias=config.biases,
        context=config.context or seq_len,
        vocab_rows=config.vocab_rows or vocab_size,
    )


def to_theirs(shape: Shape, config: TransformerConfig) -> dict[str, Any]:
    """Return config.json for a `whole` config, as far as the shape can say it."""
    values: dict[str, Any] = {
        "architectures": [shape.architecture],
        "model_type": shape.model_type,
    }
    for name, key in shape.keys.items():
        value = getattr(config, key.field)
        if key.values is not None:
            named = [theirs for theirs, ours in key.values.items() if ours == value]
            value = named[0] if named else None
        values[name] = value
    if config.positions == "rotary":
        scaling, kind = config.rotary_scaling, config.rotary_scaling.kind
        names = list(SCALING_KEYS)[: SCALING_FIELDS[kind]]
        given = {name: getattr(scaling, SCALING_KEYS[name]) for name in names}
        values["rope_theta"] = config.rotary_base
        values["rope_scaling"] = {"rope_type": kind, **given} if names else None
    if "sliding_window" in shape.keys:
        values["sliding_window"] = config.window or None
    if shape.switch:
        first = config.window_from if config.window else config.num_layers
        values |= {shape.switch: config.window > 0, "max_window_layers": first}
        values["layer_types"] = ["full_attention"] * first
        values["layer_types"] += ["sliding_attention"] * (config.num_layers - first)
    return values


def fitting(config: TransformerConfig, wanted: str = "") -> tuple[Shape, dict[str, Any]]:
    """Return the first shape that a `whole` config has, and its config.json.

    `wanted` is the architecture that it must be; "": any. Raises ValueError with the fields
    that do not fit, if there is none.
    """
    reasons = []
    for shape in SHAPES:
        if wanted and shape.architecture != wanted:
            continue
        values = to_theirs(shape, config)
        differing = misfits(shape, values, config)
        if not differing:
            return shape, values
        reasons.append(f"{shape.architecture} ({', '.join(differing)})")
    raise ValueError(
        f"the model has the shape of none of these, because of the fields named: "
        f"{'; '.join(reasons)}"
    )


def misfits(shape: Shape, values: dict[str, Any], config: TransformerConfig) -> list[str]:
    """List the fields that would be others after the config was written and read back."""
    try:
        back = from_theirs(shape, values, config, "config.json")
    except ValueError as error:
        return [str(error)]
    back = whole(back, config.vocab_rows, config.context)
    ours, theirs = asdict(config), asdict(back)
    return [
        f"model.{name} {value!r}" for name, value in ours.items() if theirs[name] != value
    ]
