"""The Setting of a model, and how a family of models is added.

A family is a config class: a dataclass whose fields are what a user may choose, with the
members of `Family`. Nothing else in the code asks which family a model belongs to. To add a
family, write such a class and enter it in FAMILIES (configs/base.py). lm/models/hmm.py is a
short example; lm/models/recurrent.py is one with layers that a pipeline can cut.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from lm.task import Task


class Setting(NamedTuple):
    """What a model is made for: all that it needs to know besides its own config."""

    vocab_size: int  # tokens of the tokenizer, perhaps fewer than data.vocab_size
    seq_len: int  # T, tokens in a row that the model reads; with pairs, both texts together
    source_len: int = 0  # pairs: the part of seq_len that is reserved for the source
    compute: jnp.dtype = jnp.float32  # the type of matrix products
    trace_norms: bool = False  # the loss also returns the sums of lm/norms.py
    packed: bool = True  # rows hold several documents; else each row is one segment

    def source_part(self, length: int) -> int:
        """Return how many of the `length` tokens of a row are its source and padding.

        Rows may be shorter than seq_len: both texts are then cut to the same share.
        """
        return self.source_len * length // self.seq_len


@runtime_checkable
class Family(Protocol):
    """The config of a model; its class says all that is known of its family."""

    # "documents", or "pairs" of a source and a target
    reads: str
    # "gradient", "expectation" (its gradients are expected counts, which a closed form
    # turns into parameters) or "counts" (its tuples are counted)
    trained_by: str
    traces: bool  # whether its layers' outputs can be measured (Experiment.trace_norms)
    augments: bool  # whether its input may differ from its targets (data.augment)

    def validate(self, setting: Setting) -> None:
        """Check what needs more than one field; ValueError."""

    def task(self, setting: Setting) -> Task: ...

    def describe(self) -> str:
        """Return a few words for tables."""


def check_chunk(name: str, size: int, setting: Setting) -> None:
    """Raise ValueError if a row cannot be cut into chunks of this size; 0: no chunks."""
    if size and setting.seq_len % size:
        raise ValueError(
            f"{name} {size} does not divide data.seq_len {setting.seq_len}; change one of "
            "them"
        )
