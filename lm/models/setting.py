"""The Setting of a model, and how a family of models is added.

A family is a config class: a dataclass whose fields are what a user may choose. Nothing
else in the code asks which family a model belongs to. To add a family, write such a class
with the members below, and enter it in FAMILIES (configs/base.py).

  reads       "documents", or "pairs" of a source and a target text
  trained_by  "gradient": an optimizer follows the gradient of the loss.
              "expectation": the gradients are expected counts, and a closed form turns
              them into parameters (lm/baum_welch.py).
              "counts": tuples of tokens are counted, and the model is made of the counts.
  traces      whether the outputs of its layers can be measured (Experiment.trace_norms)
  validate    (setting) -> None; raises ValueError for fields that do not fit together, or
              not the setting. Each field by itself is checked by its metadata
              (configs/fields.py).
  task        (setting) -> Task, the functions that train and run the model (lm/task.py)
  describe    () -> a few words for tables

lm/models/hmm.py is a short example; lm/models/recurrent.py is one with layers that a
pipeline can cut.
"""

from typing import NamedTuple

import jax.numpy as jnp


class Setting(NamedTuple):
    """What a model is made for: all that it needs to know besides its own config."""

    vocab_size: int  # tokens of the tokenizer, perhaps fewer than data.vocab_size
    seq_len: int  # T, tokens in a row that the model reads; with pairs, both texts together
    source_len: int = 0  # pairs: the part of seq_len that is reserved for the source
    compute: jnp.dtype = jnp.float32  # the type of matrix products
    trace_norms: bool = False  # the loss also returns the sums of lm/norms.py


def check_chunk(name: str, size: int, setting: Setting) -> None:
    """Raise ValueError if a row cannot be cut into chunks of this size; 0: no chunks."""
    if size and setting.seq_len % size:
        raise ValueError(
            f"{name} {size} does not divide data.seq_len {setting.seq_len}; change one of "
            "them"
        )
