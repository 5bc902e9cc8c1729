"""A hidden Markov model of 128 states by stepwise Baum-Welch, the text of tiny.py.

Command:  python -m experiments.train --config=configs/hmm.py --workdir=runs/a --devices=8
          By gradient: --config.model.training=gradient --config.optim.name=adamw
          --config.optim.learning_rate=0.03 --config.optim.weight_decay=0
"""

from configs.base import Experiment
from lm.data.pipeline import DataConfig
from lm.models.hmm import HmmConfig
from lm.optim import OptimConfig
from parallel.strategies import ParallelConfig


def get_config() -> Experiment:
    return Experiment(
        steps=400,
        data=DataConfig(vocab_size=2048, seq_len=128, batch_size=32),
        model=HmmConfig(num_states=128, training="em"),
        optim=OptimConfig(
            name="baum_welch",
            learning_rate=1.0,
            schedule="constant",
            clip_norm=0.0,
            forgetting=0.6,
            smoothing=1e-6,
        ),
        parallel=ParallelConfig(strategy="shard_map"),
    )
