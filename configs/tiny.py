"""A 1.07 M parameter Llama-shaped transformer on the Python standard library.

Command:  make train
Cost:     1.64 M tokens; 1 min 15 s after the install on 2 shared CPU cores, 2.3 GB
Expected: validation loss 3.795 on Python 3.11, 3.70 to 3.88 over modules (3.44 M training
          tokens), where the bigram model has 4.246; other versions of Python have other
          libraries and figures
"""

from configs.base import Experiment
from lm.data.config import DataConfig
from lm.models.transformer.config import TransformerConfig
from lm.optim import OptimConfig
from parallel.config import ParallelConfig


def get_config() -> Experiment:
    return Experiment(
        steps=400,
        data=DataConfig(vocab_size=2048, seq_len=128, batch_size=32),
        model=TransformerConfig(
            width=128,
            num_layers=4,
            num_heads=4,
            activation="swiglu",
            norm="rmsnorm",
            positions="rotary",
            bias=False,
        ),
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=40),
        parallel=ParallelConfig(strategy="jit"),
    )
