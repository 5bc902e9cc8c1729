"""The config of an exchange, and `build_exchange`, which makes the exchange."""

from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass, field

from jax.sharding import Mesh

from parallel.exchange.algorithms import ALGORITHMS
from parallel.exchange.chunks import chunk_top_k
from parallel.exchange.codec import Codec, hierarchical
from parallel.exchange.power_sgd import power_sgd
from parallel.exchange.quantise import bfloat16, int2, int4, int8, majority_vote, sign
from parallel.exchange.sparse import deep_gradient_compression, random_k, top_k
from parallel.exchange.ternary import ternary
from parallel.exchange.transforms import (
    Exchange,
    all_reduce,
    bucketed,
    clipped,
    compressed,
    delayed,
    guarded,
)
from parallel.mesh import batch_axes

CODECS: dict[str, Callable[["ExchangeConfig"], Codec]] = {
    "bfloat16": lambda c: bfloat16(),
    "int8": lambda c: int8(c.block or 256, nearest=c.error_feedback != "off"),
    "int4": lambda c: int4(c.block or 64, nearest=c.error_feedback != "off"),
    "int2": lambda c: int2(c.block or 512),
    "ternary": lambda c: ternary(c.block or 500),
    "sign": lambda c: sign(c.block or 1024),
    "majority_vote": lambda c: majority_vote(),
    "top_k": lambda c: top_k(c.keep),
    "chunk_top_k": lambda c: chunk_top_k(c.keep),
    "random_k": lambda c: random_k(c.keep),
    "dgc": lambda c: deep_gradient_compression(c.keep, c.momentum, c.warmup_steps),
    "power_sgd": lambda c: power_sgd(c.rank),
}

# Codecs, by the fields that have an effect on them.
BLOCKS = {"parallel.exchange.codec": ("int8", "int4", "int2", "ternary", "sign")}
SPARSE = {"parallel.exchange.codec": ("top_k", "chunk_top_k", "random_k", "dgc")}
DGC = {"parallel.exchange.codec": ("dgc",)}


@dataclass
class ExchangeConfig:
    # how the sum travels between devices; auto: psum, or what the codec needs
    algorithm: str = field(
        default="auto",
        metadata={"choices": ChainMap(ALGORITHMS, {"auto": None}), "decides": False},
    )
    # how a gradient is compressed; none: it is sent as float32
    codec: str = field(
        default="none", metadata={"choices": ChainMap(CODECS, {"none": None})}
    )
    # on: what the codec lost is added to the next gradient; auto: on if the codec allows it
    error_feedback: str = field(
        default="auto",
        metadata={
            "choices": ("auto", "on", "off"),
            "only": {"parallel.exchange.codec": CODECS},
        },
    )
    # share of what the codec lost that is added to the next gradient; 1: all of it
    feedback_decay: float = field(
        default=1.0,
        metadata={
            "above": 0,
            "at_most": 1,
            "only": {"parallel.exchange.codec": CODECS},
        },
    )
    # elements that share one scale; 0: the codec's own number
    block: int = field(default=0, metadata={"at_least": 0, "only": BLOCKS})
    # share of the gradient's elements that is sent
    keep: float = field(default=0.01, metadata={"above": 0, "at_most": 1, "only": SPARSE})
    # rank of the two factors that stand for a matrix
    rank: int = field(
        default=4,
        metadata={"at_least": 1, "only": {"parallel.exchange.codec": ("power_sgd",)}},
    )
    # momentum that DGC applies before it chooses what to send
    momentum: float = field(default=0.9, metadata={"at_least": 0, "below": 1, "only": DGC})
    # largest norm of the gradient before it is compressed: each replica's share of it is
    # scaled down to this over the root of the number of replicas; 0: off
    clip: float = field(
        default=0.0, metadata={"at_least": 0, "only": {"parallel.exchange.codec": CODECS}}
    )
    # steps in which the share that is sent falls from 0.25 to keep
    warmup_steps: int = field(default=0, metadata={"at_least": 0, "only": DGC})
    # bytes of gradients that are exchanged together; 0: all of them
    bucket_bytes: int = field(default=0, metadata={"at_least": 0})
    # microbatches between exchanges; 0: one exchange a step
    every: int = field(default=0, metadata={"at_least": 0})
    # steps between the computation of a gradient and its use
    delay: int = field(default=0, metadata={"at_least": 0})
    # lambda of DC-ASGD, which corrects a late gradient; 0: no correction
    compensation: float = field(default=0.0, metadata={"at_least": 0})

    @property
    def exact(self) -> bool:
        """Whether the result is the mean gradient of this step, up to rounding."""
        return self.codec == "none" and not self.delay

    def validate(self, mesh: Mesh, accumulation: int) -> None:
        """Raise ValueError for fields that do not fit together."""
        if self.compensation and not self.delay:
            raise ValueError(
                f"parallel.exchange.compensation {self.compensation} corrects a delay, but "
                "parallel.exchange.delay is 0; set a delay, or unset the compensation"
            )
        if self.every and accumulation % self.every:
            raise ValueError(
                f"parallel.exchange.every {self.every} does not divide "
                f"parallel.accumulation {accumulation}; change one of them"
            )
        if 0 < self.every < accumulation and (self.delay or self.codec == "dgc"):
            counted = f"delay {self.delay}" if self.delay else "codec=dgc, its momentum"
            raise ValueError(
                f"parallel.exchange.every {self.every} makes {accumulation // self.every} "
                f"exchanges of the {accumulation} microbatches of a step, but "
                f"parallel.exchange.{counted}, counts steps; leave every at 0"
            )
        if self.codec != "none":
            self.check_codec()
        if self.algorithm == "hierarchical" and len(batch_axes(mesh)) < 2:
            raise ValueError(
                "parallel.exchange.algorithm=hierarchical needs a fast and a slow axis, "
                f"and the mesh is {dict(mesh.shape)}; give parallel.slice, the number of "
                "groups that are joined by slow links"
            )

    def check_codec(self) -> None:
        """Raise ValueError if the codec cannot be made or be used in this way."""
        try:
            codec = CODECS[self.codec](self)
        except ValueError as error:
            raise ValueError(f"parallel.exchange: {error}") from None
        if self.algorithm not in ("auto", *codec.algorithms):
            raise ValueError(
                f"parallel.exchange.codec={self.codec} cannot travel by "
                f"algorithm={self.algorithm}: what it sends cannot be summed on the way; "
                f"choose auto or one of {', '.join(codec.algorithms)}"
            )
        if self.error_feedback == "on" and codec.no_feedback:
            raise ValueError(
                "parallel.exchange.error_feedback=on does not go with "
                f"codec={self.codec}: {codec.no_feedback}; choose auto or off, or another "
                "codec"
            )
        if self.feedback_decay != 1 and not self.feeds_back:
            raise ValueError(
                f"parallel.exchange.feedback_decay {self.feedback_decay} has no effect: "
                f"codec={self.codec} with error_feedback={self.error_feedback} feeds "
                "nothing back; unset it"
            )

    @property
    def feeds_back(self) -> bool:
        """Whether what the codec loses is kept and added to the next gradient."""
        if self.codec == "none" or self.error_feedback == "off":
            return False
        return not CODECS[self.codec](self).no_feedback

    @property
    def keeps_spikes(self) -> bool:
        """Whether what is left of a huge gradient would be sent in later steps."""
        return (self.feeds_back or self.codec == "dgc") and not self.clip


def build_exchange(config: ExchangeConfig, mesh: Mesh) -> Exchange:
    """Make the exchange: an algorithm or a codec, then buckets, clip, delay and guard."""
    c, axes = config, batch_axes(mesh)
    algorithm = "psum" if c.algorithm == "auto" else c.algorithm
    if c.codec == "none":
        exchange = all_reduce(algorithm, axes)
    else:
        codec = CODECS[c.codec](c)
        if algorithm == "hierarchical" and not codec.linear:
            codec = hierarchical(codec, mesh.shape[axes[-1]])
        feedback = c.feedback_decay if c.feeds_back else 0.0
        exchange = compressed(codec, axes, algorithm, feedback)
    if c.bucket_bytes:
        exchange = bucketed(c.bucket_bytes, exchange)
    if c.clip:
        exchange = clipped(c.clip, exchange, axes)
    exchange = delayed(c.delay, exchange, c.compensation)
    return guarded(exchange, axes) if c.delay or c.codec != "none" else exchange
