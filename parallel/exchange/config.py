"""The config of an exchange, its checks, and `build_exchange`, which makes it."""

from collections.abc import Callable
from dataclasses import dataclass

from jax.sharding import Mesh

from parallel.exchange.algorithms import ALGORITHMS
from parallel.exchange.codec import Codec, hierarchical, identity
from parallel.exchange.power_sgd import power_sgd
from parallel.exchange.quantise import bfloat16, int4, int8, majority_vote, sign, ternary
from parallel.exchange.sparse import deep_gradient_compression, random_k, top_k
from parallel.exchange.transforms import (
    Exchange,
    all_reduce,
    bucketed,
    compressed,
    delayed,
    in_means,
)
from parallel.mesh import batch_axes


@dataclass
class ExchangeConfig:
    algorithm: str = "auto"  # one of ALGORITHMS; auto: psum, or what the codec travels by
    codec: str = "none"  # one of CODECS
    error_feedback: str = "auto"  # on: what the codec lost goes with the next gradient; off
    block: int = 0  # int8, int4, ternary, sign: elements that share a scale; 0: its own
    keep: float = 0.01  # top_k, random_k, dgc: the share of elements sent
    rank: int = 4  # power_sgd
    momentum: float = 0.9  # dgc: of its momentum correction
    warmup_steps: int = 0  # dgc: until `keep` is reached
    bucket_bytes: int = 0  # exchange the leaves in buckets of this size; 0: all at once
    every: int = 0  # microbatches between exchanges; 0: once a step
    delay: int = 0  # steps by which the gradient that is used is late
    compensation: float = 0.0  # of the delay, DC-ASGD's lambda

    @property
    def exact(self) -> bool:
        """Whether the result is the sum of this step's gradients, up to rounding."""
        return self.codec in ("none", "identity") and not self.delay

    def validate(self, mesh: Mesh, accumulation: int) -> None:
        for name, options in [
            ("algorithm", ("auto", *ALGORITHMS)),
            ("codec", ("none", *CODECS)),
            ("error_feedback", ("auto", "on", "off")),
        ]:
            if (value := getattr(self, name)) not in options:
                raise ValueError(
                    f"parallel.exchange.{name} is {value!r}; "
                    f"choose one of {', '.join(options)}"
                )
        for name in ("block", "bucket_bytes", "every", "delay", "compensation"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"parallel.exchange.{name} is {getattr(self, name)}; "
                    "it must not be negative"
                )
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


CODECS: dict[str, Callable[[ExchangeConfig], Codec]] = {
    "identity": lambda c: identity(),
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

# Under error_feedback=auto these have none. identity loses nothing, dgc keeps by itself
# what it does not send, and ternary's rounding is unbiased but can err by more than the
# gradient is long: fed back, such errors grow (Karimireddy et al. 2019, 4, ask for a
# contraction).
WITHOUT_FEEDBACK = ("identity", "dgc", "ternary")


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
        feedback = wanted == "on" or (wanted == "auto" and c.codec not in WITHOUT_FEEDBACK)
        exchange = compressed(codec, axes, algorithm, feedback)
    if c.bucket_bytes:
        exchange = bucketed(c.bucket_bytes, exchange)
    exchange = delayed(c.delay, exchange, c.compensation)
    return in_means(exchange, axes) if c.delay or c.codec != "none" else exchange
