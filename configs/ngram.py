"""A trigram model with modified Kneser-Ney smoothing, the text and vocabulary of tiny.py.

Command:  python -m experiments.train --config=configs/ngram.py --workdir=runs/a --devices=8
          One epoch of the embedded corpus is 29 steps of 1024 rows; what comes after it is
          not counted again. --config.model.order=1 to 5
"""

from configs.base import Experiment
from lm.data.pipeline import DataConfig
from lm.models.ngram import NgramConfig
from parallel.strategies import ParallelConfig


def get_config() -> Experiment:
    return Experiment(
        steps=30,
        eval_every=0,
        save_every=0,
        data=DataConfig(vocab_size=2048, seq_len=128, batch_size=1024),
        model=NgramConfig(order=3),
        parallel=ParallelConfig(strategy="shard_map"),
    )
