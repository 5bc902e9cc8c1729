"""What an n-gram model counts and how its counts become parameters: lm meets parallel."""

from functools import partial

import jax
from jax.sharding import Mesh

from lm.models.ngram.model import NgramConfig, counted, estimate
from lm.task import Params
from parallel.counting.program import Counting, counting_program, finish
from parallel.counting.table import Table


def ngram_counting(
    config: NgramConfig,
    vocab_size: int,
    seq_len: int,
    batch_size: int,
    num_steps: int,
    num_rows: int = 0,
) -> Counting:
    """Say how the n-grams of `num_steps` batches are counted, with room for all of them.

    Of batches that go round the corpus, rows after the first `num_rows` (0: none) were
    there before and are not counted again.
    """
    return Counting(
        tuples=counted(config, vocab_size, batch_size, num_rows or num_steps * batch_size),
        finish=partial(estimate, config, vocab_size),
        width=config.order,
        limit=vocab_size + 1,
        capacity=num_steps * batch_size * seq_len,
    )


def saved_counts(counting: Counting, mesh: Mesh) -> Table:
    """Return the shapes, types and shardings of the counts in a checkpoint."""
    return counting_program(counting, "jit", mesh).saved.params


def model_of(counting: Counting, saved: Table) -> Params:
    """Make the model of the counts in a checkpoint."""
    return finish(counting, jax.tree.map(lambda x: x[None], saved))
