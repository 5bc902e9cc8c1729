"""A 2-layer LSTM on the Python standard library, the text and the vocabulary of tiny.py.

Command:  python -m experiments.train --config=configs/lstm.py --workdir=runs/a --devices=8
          For a GRU or a plain RNN: --config.model.cell=gru, --config.model.cell=rnn.
          For longer rows, with gradients cut inside them: --config.data.seq_len=512
          --config.data.batch_size=8 --config.model.truncate=128
Cost:     1.64 M tokens; 1.57 M parameters; 0.9 GB
Expected: validation loss 4.187 on Python 3.11, 4.10 to 4.27 over modules, where the bigram
          model has 4.246; 3.725 with a GRU, 3.896 with a plain RNN
"""

from configs.base import Experiment
from lm.data.config import DataConfig
from lm.models.recurrent import RecurrentConfig
from lm.optim import OptimConfig
from parallel.config import ParallelConfig


def get_config() -> Experiment:
    return Experiment(
        steps=400,
        data=DataConfig(vocab_size=2048, seq_len=128, batch_size=32),
        model=RecurrentConfig(cell="lstm", width=256, num_layers=2),
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=40),
        parallel=ParallelConfig(strategy="jit"),
    )
