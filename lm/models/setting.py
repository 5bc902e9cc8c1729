"""What a model is made for, besides its own config.

The config class of a family says all that is known of it:

  reads       "documents" or "pairs" of a source and a target
  trained_by  "gradient", "expectation" (its gradients are expected counts, which a closed
              form turns into parameters) or "counts" (its tuples are counted)
  traces      whether its layers' outputs can be measured (Experiment.trace_norms)
  validate    (setting) -> ValueError for what needs more than one field
  task        (setting) -> Task
  describe    () -> a few words for tables
"""

from typing import NamedTuple

import jax.numpy as jnp


class Setting(NamedTuple):
    vocab_size: int
    seq_len: int  # T, target tokens in a row; of pairs, with those of the source
    source_len: int = 0  # pairs: the part of seq_len that is the source's
    compute: jnp.dtype = jnp.float32  # the type of products
    trace_norms: bool = False
    packed: bool = True  # rows hold several documents; else each row is one segment


def check_chunk(name: str, size: int, setting: Setting) -> None:
    """Raise ValueError for chunks of positions that make no whole row; 0: no chunks."""
    if size and setting.seq_len % size:
        raise ValueError(f"{name} {size} does not divide data.seq_len {setting.seq_len}")
