"""Write the words of the name of a function of the Python standard library from its body.

Command:  python -m experiments.train --config=configs/function_name.py \
              --workdir=runs/names --devices=8
          python -m experiments.score --workdir=runs/names --beam=4
          With a recurrent encoder and decoder: --config.model.kind=recurrent
Cost:     TO FILL IN
Expected: TO FILL IN
"""

from configs.base import Experiment
from lm.data.config import DataConfig
from lm.models.seq2seq.task import Seq2SeqConfig
from lm.optim import OptimConfig
from parallel.strategies import ParallelConfig


def get_config() -> Experiment:
    return Experiment(
        steps=600,
        prompt="def _(self):\n    self.file.close()",
        data=DataConfig(
            source="function_name",
            vocab_size=2048,
            seq_len=96,
            source_len=80,
            batch_size=32,
        ),
        model=Seq2SeqConfig(width=128, num_layers=2, num_heads=4),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=60),
        parallel=ParallelConfig(strategy="jit"),
    )
