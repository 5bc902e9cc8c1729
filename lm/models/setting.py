"""What a model is made for, besides its own config; what a config says of its family."""

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from lm.task import Task


class Setting(NamedTuple):
    vocab_size: int
    seq_len: int  # T, target tokens in a row; of pairs, with those of the source
    source_len: int = 0  # pairs: the part of seq_len that is the source's
    compute: jnp.dtype = jnp.float32  # the type of products
    trace_norms: bool = False
    packed: bool = True  # rows hold several documents; else each row is one segment


@runtime_checkable
class Family(Protocol):
    """The config of a model; its class says all that is known of its family."""

    # "documents", or "pairs" of a source and a target
    reads: str
    # "gradient", "expectation" (its gradients are expected counts, which a closed form
    # turns into parameters) or "counts" (its tuples are counted)
    trained_by: str
    traces: bool  # whether its layers' outputs can be measured (Experiment.trace_norms)

    def validate(self, setting: Setting) -> None:
        """Check what needs more than one field; ValueError."""

    def task(self, setting: Setting) -> Task: ...

    def describe(self) -> str:
        """Return a few words for tables."""


def check_chunk(name: str, size: int, setting: Setting) -> None:
    """Raise ValueError for chunks of positions that make no whole row; 0: no chunks."""
    if size and setting.seq_len % size:
        raise ValueError(f"{name} {size} does not divide data.seq_len {setting.seq_len}")
