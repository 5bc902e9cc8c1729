"""A function of the Python standard library -> the first line of its docstring.

Command:  python -m experiments.train --config=configs/docstring.py --workdir=runs/doc \
              --devices=8
          python -m experiments.score --workdir=runs/doc --beam=4
          With a recurrent encoder and decoder: --config.model.kind=recurrent
Cost:     TODO
Expected: TODO
"""

from configs.base import Experiment
from lm.data.pipeline import DataConfig
from lm.models.seq2seq import Seq2SeqConfig
from lm.optim import OptimConfig
from parallel.strategies import ParallelConfig


def get_config() -> Experiment:
    return Experiment(
        steps=600,
        prompt="def close(self):\n    self.file.close()",
        data=DataConfig(
            source="docstring", vocab_size=2048, seq_len=128, source_len=96, batch_size=32
        ),
        model=Seq2SeqConfig(width=128, num_layers=3, num_heads=4),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=60),
        parallel=ParallelConfig(strategy="jit"),
    )
