"""Structured pruning: whole heads and columns of MLPs go, and the arrays become smaller.

Every layer loses equally many, so that layers can still be stacked, scanned and laid on the
stages of a pipeline; which ones differs from layer to layer. Those go whose weights are the
smallest, by the sum of squares of all that belongs to one (Fang et al. 2023, 3.3): of a
head its queries, keys, values and rows of the output; of a column what it reads and writes.
Heads that share keys and values go together.

Shapes: D model width, N heads, G key/value heads, R = N / G, K head width, F hidden width.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from lm.models.transformer.config import TransformerConfig
from lm.task import Params

SIZES = ("num_heads", "num_kv_heads", "mlp_width")


def narrower(model: TransformerConfig, wanted: TransformerConfig) -> TransformerConfig:
    """Return `wanted`, with heads as wide as before; ValueError if it is not narrower."""
    before, after = sizes(model), sizes(wanted)
    for (name, old), new in zip(before.items(), after.values(), strict=True):
        if new > old:
            raise ValueError(
                f"model.{name} is {new}, but the run has {old}, and pruning only takes "
                f"away; give at most {old}"
            )
    if before["num_heads"] * after["num_kv_heads"] != (
        after["num_heads"] * before["num_kv_heads"]
    ):
        raise ValueError(
            f"model.num_heads {after['num_heads']} with {after['num_kv_heads']} key/value "
            f"heads: the run has {before['num_heads']} with {before['num_kv_heads']}, and "
            "heads that share keys and values go together; keep the proportion"
        )
    if before["num_heads"] == after["num_heads"]:
        return wanted
    return replace(wanted, head_width=model.key_width)


def sizes(model: TransformerConfig) -> dict[str, int]:
    values = model.num_heads, model.num_kv_heads or model.num_heads, model.hidden_width
    return dict(zip(SIZES, values, strict=True))


def narrowed(params: Params, model: TransformerConfig, target: TransformerConfig) -> Params:
    """Return the parameters of `target`, a narrower model of the same width."""
    groups, columns = sizes(model)["num_kv_heads"], target.hidden_width
    kept_groups = sizes(target)["num_kv_heads"]

    def layer(one: Params) -> Params:
        return one | {
            "attention": fewer_heads(one["attention"], groups, kept_groups),
            "mlp": fewer_columns(one["mlp"], columns),
        }

    if "scanned_layers" in params:
        return params | {"scanned_layers": jax.vmap(layer)(params["scanned_layers"])}
    layers = {index: layer(one) for index, one in params["layers"].items()}
    return params | {"layers": layers}


def fewer_heads(attention: Params, groups: int, kept: int) -> Params:
    return fewer(attention, ("query", "key", "value"), "out", groups, kept)


def fewer_columns(mlp: Params, kept: int) -> Params:
    reads = tuple(name for name in ("up", "gate") if name in mlp)
    return fewer(mlp, reads, "down", mlp["down"]["kernel"].shape[0], kept)


def fewer(
    parts: Params, reads: tuple[str, ...], writes: str, num: int, kept: int
) -> Params:
    """Keep the largest `kept` of `num` units, in their order.

    A unit has equally many outputs of each matrix in `reads`, one after the other, and as
    many inputs of the matrix `writes`.
    """

    def outputs(x: jax.Array) -> jax.Array:  # [..., units x size] -> [units, ...]
        return jnp.moveaxis(x.reshape(*x.shape[:-1], num, -1), -2, 0)

    written = parts[writes]["kernel"].reshape(num, -1, parts[writes]["kernel"].shape[-1])
    blocks = [outputs(parts[name]["kernel"]) for name in reads] + [written]
    importance = sum(jnp.sum(x**2, range(1, x.ndim)) for x in blocks)
    chosen = jnp.sort(jax.lax.top_k(importance, kept)[1])

    def narrow(x: jax.Array) -> jax.Array:
        found = jnp.moveaxis(outputs(x)[chosen], 0, -2)
        return found.reshape(*x.shape[:-1], -1)

    changed = {name: {key: narrow(x) for key, x in parts[name].items()} for name in reads}
    down = parts[writes] | {"kernel": written[chosen].reshape(-1, written.shape[-1])}
    return parts | changed | {writes: down}
