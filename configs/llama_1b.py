"""The shape of Llama 3.2 1B, 1.24 G parameters (Grattafiori et al. 2024), under FSDP.

Command:  python -m experiments.train --config=configs/llama_1b.py --workdir=runs/llama \
              --config.data.source=jsonl --config.data.path='corpus/*.jsonl'
Cost:     0.52 M tokens a step. Compiled for a TPU v5e-8 it takes 7.7 of a chip's 16.9 GB,
          1.9 GB of them for the state; with more chips it takes less. With remat="dots" it
          takes 13.8 GB and multiplies by no weight twice. --dry_run on a CPU prints a
          larger figure, because XLA for CPUs undoes rematerialisation.
Expected: not run here.
"""

from configs.base import Experiment
from lm.data.config import DataConfig
from lm.models.transformer.config import TransformerConfig
from lm.optim import OptimConfig
from lm.precision import PrecisionConfig
from parallel.config import ParallelConfig


def get_config() -> Experiment:
    return Experiment(
        steps=100_000,
        eval_every=1000,
        eval_batches=20,
        save_every=1000,
        data=DataConfig(vocab_size=128_256, seq_len=2048, batch_size=256),
        model=TransformerConfig(
            width=2048,
            num_layers=16,
            num_heads=32,
            num_kv_heads=8,
            mlp_width=8192,
            activation="swiglu",
            norm="rmsnorm",
            positions="rotary",
            rotary_base=500_000.0,
            bias=False,
            remat="full",
            loss_chunk=256,
        ),
        optim=OptimConfig(learning_rate=3e-4, warmup_steps=2000),
        precision=PrecisionConfig(compute="bfloat16"),
        parallel=ParallelConfig(strategy="fsdp", accumulation=8),
    )
