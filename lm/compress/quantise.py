"""Quantisation of weights to 8 or 4 bits: in training, and after it.

The Task sees each chosen matrix as its codes times their scales; the parameters stay
float32. The gradient passes through the rounding as if it were not there (Bengio et al.
2013, straight-through), so the same Task serves training that is aware of the rounding
(Jacob et al. 2018) and, at zero steps of training, quantisation after it.

Qwix makes the codes. Each output of a matrix has a scale, or with `group` each run of that
many of its inputs. A scale is that of whole matrices, never of a shard. Activations are not
quantised. Qwix would do so by intercepting the products inside Flax modules, with a scale
of the rows at hand; those differ from device to device, and with them the loss.

`calibrated` clips the weights, so that a few large ones do not make all others coarse. The
scale of a clipped matrix is that of its largest weight left, so nothing else is stored.

Shapes: I inputs, O outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import qwix

from lm.compress.leaves import Names, changed, check_pattern
from lm.task import Params

BITS = {"int8": 8, "int4": 4}
TYPES = {8: jnp.int8, 4: jnp.int4}
QUANTISED = {"compress.quantise.weights": tuple(BITS)}
# Tried as the largest weight that is kept, as shares of the largest there is.
CLIPS = np.linspace(0.5, 1.0, 26)


@dataclass
class QuantiseConfig:
    # type of weights in the forward pass and on disk; none: float32
    weights: str = field(default="none", metadata={"choices": ("none", *BITS)})
    # inputs of a matrix that share a scale, for each output; 0: all
    group: int = field(default=0, metadata={"at_least": 0, "only": QUANTISED})
    # regular expression of the names, inside a layer or outside, of what is quantised
    matrices: str = field(default=r"(kernel|embedding)$", metadata={"only": QUANTISED})
    # scales of activations; live, from the rows at hand, is refused: it depends on devices
    activations: str = field(default="none", metadata={"choices": ("none", "live")})

    @property
    def bits(self) -> int:
        """Return the bits of a weight; 0: it is not quantised."""
        return BITS.get(self.weights, 0)

    def validate(self, params: Params) -> None:
        """Raise ValueError for what does not fit the parameters, or their shapes."""
        if self.activations == "live":
            raise ValueError(
                "compress.quantise.activations is 'live', but the scale of the rows at "
                "hand would differ from device to device, and the model with it; unset it"
            )
        if not self.bits:
            return
        chosen = check_pattern("compress.quantise.matrices", self.matrices, params)
        for keys, x in chosen.items():
            inputs = x.shape[input_dim(keys, x)]
            if self.group and inputs % self.group:
                raise ValueError(
                    f"compress.quantise.group {self.group} does not divide the {inputs} "
                    f"inputs of {'/'.join(map(str, keys))}; change it, or leave this "
                    "matrix out by compress.quantise.matrices"
                )


def input_dim(keys: Names, x: jax.Array) -> int:
    """Return the dim that a product sums over. A table's rows are the head's outputs."""
    return x.ndim - (1 if "embedding" in str(keys[-1]) else 2)


@jax.custom_vjp
def straight_through(x: jax.Array, seen: jax.Array) -> jax.Array:
    """Return `seen`; its gradient goes to x alone."""
    return seen


straight_through.defvjp(
    lambda x, seen: (seen, None), lambda _, dy: (dy, jnp.zeros_like(dy))
)


def coded(keys: Names, x: jax.Array, config: QuantiseConfig) -> qwix.QArray:
    """Return the codes of a matrix, [I, O], or of a stack of them, and their scales.

    The largest weight of a group has the largest code. Qwix puts it half a step beyond,
    midway between two codes, where rounding errors decide, and the codes would differ
    from layout to layout.
    """
    dim, largest = input_dim(keys, x), jnp.iinfo(TYPES[config.bits]).max
    return qwix.quantize(
        x,
        TYPES[config.bits],
        channelwise_axes=[other for other in range(x.ndim) if other != dim],
        tiled_axes={dim: config.group or x.shape[dim]},
        calibration_method=f"absmax,{(largest + 0.5) / largest}",
    )


def quantised(params: Params, config: QuantiseConfig) -> Params:
    """Return the parameters, or any part of them, as the model sees them."""
    if not config.bits:
        return params

    def seen(keys: Names, x: jax.Array) -> jax.Array:
        rounded = qwix.dequantize(coded(keys, jax.lax.stop_gradient(x), config))
        return straight_through(x, rounded)

    return changed(params, config.matrices, seen)


def calibrated(
    params: Params, config: QuantiseConfig, importance: Params | None = None
) -> Params:
    """Clip each group of weights where the squared error of its codes is the least.

    With `importance`, like `params`, the errors are weighed by it. The mean of squared
    gradients makes their sum an estimate of the loss that the codes cost (Kim et al. 2024,
    SqueezeLLM, 4.1).
    """
    weights = importance or jax.tree.map(jnp.ones_like, params)

    def clipped(keys: Names, x: jax.Array) -> jax.Array:
        weight = weights
        for key in keys:
            weight = weight[key]
        return best_clip(x, weight, lambda x: coded(keys, x, config))

    return changed(params, config.matrices, clipped)


def best_clip(
    x: jax.Array, weight: jax.Array, code: Callable[[jax.Array], qwix.QArray]
) -> jax.Array:
    """Return x, clipped; each group by the best of CLIPS."""
    whole = code(x)
    spans = [n // m for n, m in zip(x.shape, whole.scale.shape, strict=True)]

    def spread(values: jax.Array) -> jax.Array:  # one value of each group -> its weights
        for dim, span in enumerate(spans):
            values = jnp.repeat(values, span, dim)
        return values

    def grouped(values: jax.Array) -> jax.Array:  # sums over groups
        pairs = zip(whole.scale.shape, spans, strict=True)
        split = values.reshape([size for pair in pairs for size in pair])
        return jnp.sum(split, range(1, 2 * x.ndim, 2))

    largest = whole.scale * jnp.iinfo(whole.qvalue.dtype).max

    def tried(best: tuple[jax.Array, jax.Array], share: jax.Array):
        limit = spread(largest * share)
        clipped = jnp.clip(x, -limit, limit)
        error = grouped(weight * (qwix.dequantize(code(clipped)) - x) ** 2)
        better = error < best[0]
        return (
            jnp.where(better, error, best[0]),
            jnp.where(better, share, best[1]),
        ), None

    # The last share tried is 1, and it must be beaten: so it comes first.
    first = jnp.full(largest.shape, jnp.inf), jnp.ones(largest.shape)
    (_, shares), _ = jax.lax.scan(tried, first, jnp.asarray(CLIPS[::-1], x.dtype))
    limit = spread(largest * shares)
    return jnp.clip(x, -limit, limit)
