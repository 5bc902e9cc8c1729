"""Low rank: a matrix as the product of two narrow ones, or with such a product added.

svd   [I, O] becomes left [I, r] times right [r, O], both trained. They begin as the best
      product of that rank (Eckart and Young 1936), the singular values shared out by roots.
lora  the matrix stays as it is, and a product [I, r] x [r, O] is added and alone trained
      (Hu et al. 2022). It begins at 0. A run that begins from scratch has little use of it:
      experiments.compress makes such a run of a trained one.

The Task multiplies the factors on their way in, so that no model knows of them. Parameters,
gradients, optimizer state and checkpoints are smaller; a step multiplies as much as before,
and r products more. Under lora the gradient of the matrix itself is 0. The optimizer keeps
no state of it, but strategies that exchange gradients send these zeros too.

Shapes: I inputs, O outputs, r rank; stacks of layers have one more dim before.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import optax

from lm.compress.leaves import (
    FACTORS,
    Leaves,
    Names,
    check_pattern,
    flat,
    matrices,
    nested,
)
from lm.task import Params

KINDS = ("none", "svd", "lora")
LOW_RANK = {"compress.low_rank.kind": KINDS[1:]}
LORA = "_lora"  # how the name of what is added to a matrix ends


@dataclass
class LowRankConfig:
    # svd: matrices are products of narrow ones; lora: only a narrow product is trained
    kind: str = field(default="none", metadata={"choices": KINDS})
    # r, columns of the left factor and rows of the right one
    rank: int = field(default=8, metadata={"at_least": 1, "only": LOW_RANK})
    # factor of what lora adds
    scale: float = field(
        default=1.0, metadata={"above": 0, "only": {"compress.low_rank.kind": ("lora",)}}
    )
    # regular expression of the names, inside a layer or outside, of these matrices
    matrices: str = field(default="kernel$", metadata={"only": LOW_RANK})

    def validate(self, params: Params) -> None:
        """Raise ValueError for what does not fit the plain parameters, or their shapes."""
        if self.kind == "none":
            return
        chosen = check_pattern("compress.low_rank.matrices", self.matrices, params)
        for keys, x in chosen.items():
            if self.rank > (most := min(x.shape[-2:])):
                raise ValueError(
                    f"compress.low_rank.rank {self.rank} is more than the rank {most} that "
                    f"{'/'.join(map(str, keys))} {list(x.shape[-2:])} can have; give at "
                    f"most {most}"
                )


def factored(params: Params, config: LowRankConfig, key: jax.Array) -> Params:
    """Return plain parameters in the form that is trained; `key` draws lora's left side."""
    if config.kind == "none":
        return params
    leaves, chosen = flat(params), matrices(params, config.matrices)
    for index, (keys, x) in enumerate(chosen.items()):
        if config.kind == "svd":
            left, right = best_factors(leaves.pop(keys), config.rank)
            name = keys[-1]
        else:
            # He et al. 2015, as in Hu et al. 2022: one side is random, the other 0.
            shape = (*x.shape[:-1], config.rank)
            draw = jax.random.normal(jax.random.fold_in(key, index), shape)
            left = draw * (2 / x.shape[-2]) ** 0.5
            right = jnp.zeros((*x.shape[:-2], config.rank, x.shape[-1]))
            name = f"{keys[-1]}{LORA}"
        for factor, value in zip(FACTORS, (left, right), strict=True):
            leaves[*keys[:-1], name, factor] = value
    return nested(leaves)


def best_factors(w_IO: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    u_IK, s_K, v_KO = jnp.linalg.svd(w_IO, full_matrices=False)
    root_r = jnp.sqrt(s_K[..., :rank])
    return u_IK[..., :rank] * root_r[..., None, :], root_r[..., None] * v_KO[..., :rank, :]


def multiplied(params: Params, config: LowRankConfig) -> Params:
    """Return the plain parameters, or any part of them, of what is trained."""
    if config.kind == "none":
        return params
    leaves: Leaves = {}
    products: Leaves = {}
    for keys, x in flat(params).items():
        if keys[-1] not in FACTORS:
            leaves[keys] = jax.lax.stop_gradient(x) if config.kind == "lora" else x
        elif keys[-1] == "left":
            right = flat(params)[*keys[:-1], "right"]
            products[keys[:-1]] = jnp.matmul(x, right)
    for keys, product in products.items():
        plain = (*keys[:-1], str(keys[-1]).removesuffix(LORA))
        added = config.kind == "lora"
        leaves[plain] = leaves[plain] + config.scale * product if added else product
    return nested(leaves)


def is_added(keys: Names) -> bool:
    return any(str(key).endswith(LORA) for key in keys)


def only_added(
    tx: optax.GradientTransformationExtraArgs, config: LowRankConfig
) -> optax.GradientTransformationExtraArgs:
    """Let the optimizer see, keep state of and move nothing but what lora adds."""
    if config.kind != "lora":
        return tx

    def selection(params: Params) -> Params:
        return nested({keys: is_added(keys) for keys in flat(params)})

    inner = optax.masked(tx, selection)

    def update(grads: Params, state: optax.OptState, params: Params, **told):
        updates, state = inner.update(grads, state, params, **told)
        # What is masked comes through as it is, such as the decay of pruned weights.
        kept = {
            k: u if is_added(k) else jnp.zeros_like(u) for k, u in flat(updates).items()
        }
        return nested(kept), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
