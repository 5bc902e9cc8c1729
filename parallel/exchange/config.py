"""The config of an exchange, its checks, and `build_exchange`, which makes it."""

from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass, field

from jax.sharding import Mesh

from parallel.exchange.algorithms import ALGORITHMS
from parallel.exchange.codec import Codec, hierarchical
from parallel.exchange.power_sgd import power_sgd
from parallel.exchange.quantise import bfloat16, int4, int8, majority_vote, sign, ternary
from parallel.exchange.sparse import deep_gradient_compression, random_k, top_k
from parallel.exchange.transforms import (
    Exchange,
    all_reduce,
    bucketed,
    compressed,
    delayed,
    guarded,
)
from parallel.mesh import batch_axes

CODECS: dict[str, Callable[["ExchangeConfig"], Codec]] = {
    "bfloat16": lambda c: bfloat16(),
    "int8": lambda c: int8(c.block or 256),
    "int4": lambda c: int4(c.block or 64),
    "ternary": lambda c: ternary(c.block or 500),
    "sign": lambda c: sign(c.block or 1024),
    "majority_vote": lambda c: majority_vote(),
    "top_k": lambda c: top_k(c.keep),
    "random_k": lambda c: random_k(c.keep),
    "dgc": lambda c: deep_gradient_compression(c.keep, c.momentum, c.warmup_steps),
    "power_sgd": lambda c: power_sgd(c.rank),
}

# Codecs, by what is read of their config.
BLOCKS = {"parallel.exchange.codec": ("int8", "int4", "ternary", "sign")}
SPARSE = {"parallel.exchange.codec": ("top_k", "random_k", "dgc")}
DGC = {"parallel.exchange.codec": ("dgc",)}


@dataclass
class ExchangeConfig:
    # auto: psum, or what the codec travels by
    algorithm: str = field(
        default="auto",
        metadata={"choices": ChainMap(ALGORITHMS, {"auto": None}), "decides": False},
    )
    # how a gradient is written in fewer bytes
    codec: str = field(
        default="none", metadata={"choices": ChainMap(CODECS, {"none": None})}
    )
    # on: what the codec lost goes with the next gradient
    error_feedback: str = field(
        default="auto",
        metadata={
            "choices": ("auto", "on", "off"),
            "only": {"parallel.exchange.codec": CODECS},
        },
    )
    # elements that share a scale; 0: the codec's own number
    block: int = field(default=0, metadata={"at_least": 0, "only": BLOCKS})
    # the share of elements sent
    keep: float = field(default=0.01, metadata={"above": 0, "at_most": 1, "only": SPARSE})
    # of the two thin factors of a matrix
    rank: int = field(
        default=4,
        metadata={"at_least": 1, "only": {"parallel.exchange.codec": ("power_sgd",)}},
    )
    # of DGC's momentum correction
    momentum: float = field(default=0.9, metadata={"at_least": 0, "below": 1, "only": DGC})
    # until `keep` is reached
    warmup_steps: int = field(default=0, metadata={"at_least": 0, "only": DGC})
    # exchange the leaves in buckets of this size; 0: all at once
    bucket_bytes: int = field(default=0, metadata={"at_least": 0})
    every: int = field(default=0, metadata={"at_least": 0})  # microbatches; 0: once a step
    # steps by which the gradient that is used is late
    delay: int = field(default=0, metadata={"at_least": 0})
    # DC-ASGD's lambda, which corrects a delay
    compensation: float = field(default=0.0, metadata={"at_least": 0})

    @property
    def exact(self) -> bool:
        """Whether the result is the mean of this step's gradients, up to rounding."""
        return self.codec == "none" and not self.delay

    def validate(self, mesh: Mesh, accumulation: int) -> None:
        """Check what needs more than one field; ValueError."""
        if self.compensation and not self.delay:
            raise ValueError(
                f"parallel.exchange.compensation {self.compensation} corrects a delay, and "
                "parallel.exchange.delay is 0; set one of them"
            )
        if self.every and accumulation % self.every:
            raise ValueError(
                f"parallel.exchange.every {self.every} does not divide "
                f"parallel.accumulation {accumulation}"
            )
        if self.codec != "none":
            self.check_journey()
        if self.algorithm == "hierarchical" and len(batch_axes(mesh)) < 2:
            raise ValueError(
                "parallel.exchange.algorithm=hierarchical needs a fast and a slow axis, "
                f"and the mesh is {dict(mesh.shape)}; give parallel.slice, the number of "
                "groups that are joined by slow links"
            )

    def check_journey(self) -> None:
        """Check that the codec can be made, and can travel by the algorithm."""
        try:
            able = CODECS[self.codec](self).algorithms
        except ValueError as error:
            raise ValueError(f"parallel.exchange: {error}") from None
        if self.algorithm not in ("auto", *able):
            raise ValueError(
                f"parallel.exchange.codec={self.codec} cannot travel by "
                f"algorithm={self.algorithm}: what it sends cannot be summed on the way; "
                f"choose auto or one of {', '.join(able)}"
            )


def build_exchange(config: ExchangeConfig, mesh: Mesh) -> Exchange:
    c, axes = config, batch_axes(mesh)
    algorithm = "psum" if c.algorithm == "auto" else c.algorithm
    if c.codec == "none":
        exchange = all_reduce(algorithm, axes)
    else:
        codec = CODECS[c.codec](c)
        if algorithm == "hierarchical" and not codec.linear:
            codec = hierarchical(codec, mesh.shape[axes[-1]])
        wanted = c.error_feedback
        feedback = wanted == "on" or (wanted == "auto" and codec.feedback)
        exchange = compressed(codec, axes, algorithm, feedback)
    if c.bucket_bytes:
        exchange = bucketed(c.bucket_bytes, exchange)
    exchange = delayed(c.delay, exchange, c.compensation)
    return guarded(exchange, axes) if c.delay or c.codec != "none" else exchange
