"""Write the first line of the docstring of a function of the Python standard library.

Command:  python -m experiments.train --config=configs/docstring.py --workdir=runs/doc \
              --devices=8
          python -m experiments.score --workdir=runs/doc --beam=4
          With a recurrent encoder and decoder: --config.model.kind=recurrent
Cost:     6,563 pairs on Python 3.11; 600 steps are 0.3 M target tokens, 1.4 GB
Expected: 600 steps are too few. The run ends at a validation loss of 4.669 (bigram model
          4.593), and its texts do not depend on the source. With a beam of 4 they have BLEU
          0.1 and chrF 10.2; copying the source has 2.3 and 22.8, the commonest target 0.0
          and 8.1. 3000 steps (--config.steps=3000) are 15 passes over few pairs: the lowest
          validation loss is 3.98, BLEU 1.4 and chrF 15.1. That is better than the bigram
          model and still worse than copying
"""

from configs.base import Experiment
from lm.data.config import DataConfig
from lm.models.seq2seq.task import Seq2SeqConfig
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
