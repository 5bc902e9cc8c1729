"""A tree on its way between a worker and a shard: as it is, or packed by a codec.

What a codec loses of a push is kept by the worker, which adds it to its next push (error
feedback). What it loses of a pull is not kept by anyone: a shard packs the difference to
the worker's copy, which it knows, so the next difference has it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from parallel.exchange.codec import Packing, flatten
from parallel.exchange.config import CODECS, ExchangeConfig
from parallel.program import Key


class Wire(NamedTuple):
    packing: Packing | None  # None: trees travel as they are
    feedback: float  # share of what was lost that is added to the next push

    def pack(self, tree: Any, key: Key) -> Any:
        return self.packing.pack(flatten(tree)[0], key) if self.packing else tree

    def unpack(self, payload: Any, like: Any, key: Key) -> Any:
        """Return the tree that a payload stands for, shaped as `like`."""
        if self.packing is None:
            return payload
        x_n, unflatten = flatten(like)
        return unflatten(self.packing.unpack(payload, x_n.size, key))

    def push(self, tree: Any, residual: Any, key: Key) -> tuple[Any, Any]:
        """Return the payload of a push, and what it lost."""
        if self.feedback:
            tree = jax.tree.map(lambda x, r: x + self.feedback * r, tree, residual)
        payload = self.pack(tree, key)
        if not self.feedback:
            return payload, residual
        arrived = self.unpack(payload, tree, key)
        return payload, jax.tree.map(jnp.subtract, tree, arrived)


def wire_of(config: ExchangeConfig) -> Wire:
    if config.codec == "none":
        return Wire(None, 0.0)
    feedback = config.feedback_decay if config.feeds_back else 0.0
    return Wire(CODECS[config.codec](config).packing, feedback)
