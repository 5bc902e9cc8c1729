"""How a model is made smaller while it is trained: the config, and what it does to a Task.

The parameters that are trained have the form of `low_rank`; the Task sees them multiplied
and quantised. `finished` gives the parameters of the plain model.
"""

from dataclasses import dataclass, field

import jax
import optax

from lm.compress.distil import DistilConfig
from lm.compress.low_rank import LowRankConfig, factored, multiplied, only_added
from lm.compress.prune import PruneConfig, pruned
from lm.compress.quantise import QuantiseConfig, quantised
from lm.task import Key, Params, Task, with_params


@dataclass
class CompressConfig:
    quantise: QuantiseConfig = field(default_factory=QuantiseConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    low_rank: LowRankConfig = field(default_factory=LowRankConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)

    @property
    def changes_task(self) -> bool:
        return self.quantise.bits > 0 or self.low_rank.kind != "none"

    def validate(self, params: Params, steps: int, vocab_size: int) -> None:
        """Raise ValueError for what does not fit the shapes of the plain parameters."""
        self.distil.validate(vocab_size)
        self.low_rank.validate(params)
        low_rank = self.low_rank
        trained = jax.eval_shape(lambda p: factored(p, low_rank, jax.random.key(0)), params)
        self.quantise.validate(trained)
        self.prune.validate(trained, steps)


def finished(params: Params, config: CompressConfig) -> Params:
    """Return the parameters of the plain model, or of any part of it."""
    return multiplied(quantised(params, config.quantise), config.low_rank)


def compressed(task: Task, config: CompressConfig) -> Task:
    """Return the task whose parameters have the compressed form."""
    if not config.changes_task:
        return task

    def init(key: Key) -> Params:
        return factored(task.init(key), config.low_rank, jax.random.fold_in(key, 1))

    # Codes and products are made of float32, so a strategy must not cast before.
    return with_params(task, lambda params: finished(params, config))._replace(
        init=init, cast=lambda params: params
    )


def compressed_optimizer(
    tx: optax.GradientTransformationExtraArgs, config: CompressConfig
) -> optax.GradientTransformationExtraArgs:
    return pruned(only_added(tx, config.low_rank), config.prune)
