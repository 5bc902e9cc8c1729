"""Parameters as those of a small model, with layers of their own or stacked."""

import jax
import jax.numpy as jnp
import numpy as np

SHAPES = {
    ("attention", "query", "kernel"): (16, 8),
    ("mlp", "up", "kernel"): (16, 24),
    ("mlp", "up", "bias"): (24,),
    ("mlp", "down", "kernel"): (24, 16),
}


def tree(num_layers: int = 2, stack: bool = False) -> dict:
    rng = np.random.default_rng(0)

    def drawn(shape) -> jax.Array:
        return jnp.asarray(rng.standard_t(3, shape), jnp.float32)

    layers: dict = {}
    for index in range(num_layers):
        layers[index] = {}
        for (first, second, last), shape in SHAPES.items():
            group = layers[index].setdefault(first, {}).setdefault(second, {})
            group[last] = drawn(shape)
    outer = {"embedding": drawn((10, 16)), "final_norm": {"scale": jnp.ones(16)}}
    if stack:
        return outer | {"scanned_layers": jax.tree.map(
            lambda *xs: jnp.stack(xs), *layers.values()
        )}  # fmt: skip
    return outer | {"layers": layers}
