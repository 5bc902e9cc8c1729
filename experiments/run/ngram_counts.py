"""Join lm and parallel for n-gram models: what to count, and the model of the counts."""

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
    """Raise ValueError if the strategy cannot count, or is asked for more than that."""
    if not config.parallel.row.counts:
        able = [name for name, row in STRATEGIES.items() if row.counts]
        raise ValueError(
            f"parallel.strategy={config.parallel.strategy} has no meaning for a model of "
            f"counts; choose one of {', '.join(able)}"
        )
    if config.data.growth:
        raise ValueError(
            f"data.growth is {config.data.growth}, but counts do not depend on the size of "
            "a batch; unset it for a model of counts"
        )
    parallel = config.parallel
    if parallel.accumulation != 1 or parallel.exchange != ExchangeConfig():
        raise ValueError(
            "a model of counts sums integers: unset parallel.accumulation and "
            "parallel.exchange"
        )
    if parallel.deals:
        raise ValueError(
            "replicas of a model of counts all count the same number of rows: unset "
            "parallel.speeds and parallel.stragglers"
        )


def config_counting(config: Experiment, vocab_size: int, num_rows: int = 0) -> Counting:
    """Say what a run counts. An epoch has `num_rows` rows; 0: no row comes twice."""
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

    Where batches go round the corpus, only the first `num_rows` rows are counted (0: all),
    because later rows repeat them.
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
