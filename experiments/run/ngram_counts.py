"""What an n-gram model counts and how its counts become parameters: lm meets parallel."""

from functools import partial

import jax
from jax.sharding import Mesh

from configs.base import Experiment
from lm.models.ngram.model import NgramConfig, counted, estimate
from lm.task import Params
from parallel.counting.program import Counting, counting_program, finish
from parallel.counting.table import Table
from parallel.exchange.config import ExchangeConfig
from parallel.strategies import STRATEGIES


def check_counting(config: Experiment) -> None:
    """Check that the strategy can count, and has nothing else to do; ValueError."""
    if not config.parallel.row.counts:
        able = [name for name, row in STRATEGIES.items() if row.counts]
        raise ValueError(
            f"parallel.strategy={config.parallel.strategy} has no meaning for a model of "
            f"counts; choose one of {', '.join(able)}"
        )
    if config.parallel.accumulation != 1 or config.parallel.exchange != ExchangeConfig():
        raise ValueError(
            "a model of counts sums integers: unset parallel.accumulation and "
            "parallel.exchange"
        )


def config_counting(config: Experiment, vocab_size: int, num_rows: int = 0) -> Counting:
    """Say what a run counts; `num_rows` is that of an epoch, 0: none is seen twice."""
    return ngram_counting(
        config.model,
        vocab_size,
        config.data.seq_len,
        config.data.batch_size,
        config.steps,
        num_rows,
    )


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
