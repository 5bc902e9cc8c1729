"""A 6-layer transformer on the One Billion Word benchmark (Chelba et al. 2013), by TFDS.

Command:  python -m experiments.train --config=configs/lm1b.py --workdir=runs/lm1b
Cost:     TFDS downloads 1.7 GB; 65 k tokens a step. Compiled for a TPU v5e-8 it takes 1.8
          of a chip's 16.9 GB.
Expected: not run here.
"""

from configs.base import Experiment
from lm.data.config import DataConfig
from lm.models.transformer.config import TransformerConfig
from lm.optim import OptimConfig
from lm.precision import PrecisionConfig


def get_config() -> Experiment:
    return Experiment(
        steps=200_000,
        eval_every=1000,
        eval_batches=20,
        save_every=1000,
        data=DataConfig(
            source="tfds", name="lm1b", vocab_size=30_000, seq_len=128, batch_size=512
        ),
        model=TransformerConfig(
            width=512,
            num_layers=6,
            num_heads=8,
            mlp_width=2048,
            dropout=0.1,
            loss_chunk=32,
        ),
        optim=OptimConfig(learning_rate=1.6e-3, schedule="inverse_sqrt", warmup_steps=1000),
        precision=PrecisionConfig(compute="bfloat16"),
    )
