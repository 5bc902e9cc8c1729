"""A hidden Markov model of 128 states on the Python standard library, by stepwise EM.

Command:  python -m experiments.train --config=configs/hmm.py --workdir=runs/hmm --devices=8
Cost:     1.64 M tokens, 180 k tokens a second on 2 shared CPU cores
Expected: validation loss 5.264 on Python 3.11, 5.19 to 5.34 over modules, where the bigram
          model has 4.246. Training by gradient reaches 5.065 with as many tokens:
          model.training=gradient, optim.name=adamw, optim.forgetting=0,
          optim.learning_rate=0.1, optim.warmup_steps=20, optim.weight_decay=0,
          optim.schedule=cosine, 400 steps of 32 rows
"""

from configs.base import Experiment
from lm.data.config import DataConfig
from lm.models.hmm import HmmConfig
from lm.optim import OptimConfig
from parallel.config import ParallelConfig


def get_config() -> Experiment:
    return Experiment(
        steps=100,
        eval_every=25,
        save_every=25,
        data=DataConfig(vocab_size=2048, seq_len=128, batch_size=128),
        model=HmmConfig(num_states=128),
        optim=OptimConfig(
            name="baum_welch", learning_rate=1.5, schedule="constant", forgetting=0.7
        ),
        parallel=ParallelConfig(strategy="shard_map"),
    )
