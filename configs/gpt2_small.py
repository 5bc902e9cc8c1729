"""GPT-2 small, 124 M parameters (Radford et al. 2019), on any text.

Command:  python -m experiments.train --config=configs/gpt2_small.py --workdir=runs/gpt2 \
              --config.data.source=text --config.data.path='corpus/*.txt'
Cost:     0.49 M tokens a step, 0.88 TFLOP a sequence (6 P T + 12 L D T^2); meant for
          accelerators: compiled for a TPU v5e-8 it takes 8.6 of a chip's 16.9 GB.
Expected: on OpenWebText, a validation loss near 2.85 after 300 G tokens (nanoGPT's figure);
          not run here.
"""

from configs.base import Experiment
from lm.data.config import DataConfig
from lm.models.transformer.config import TransformerConfig
from lm.optim import OptimConfig
from lm.precision import PrecisionConfig
from parallel.config import ParallelConfig


def get_config() -> Experiment:
    return Experiment(
        steps=600_000,
        eval_every=2000,
        eval_batches=20,
        save_every=2000,
        data=DataConfig(vocab_size=50_304, seq_len=1024, batch_size=480, packing="concat"),
        model=TransformerConfig(width=768, num_layers=12, num_heads=12, loss_chunk=256),
        optim=OptimConfig(learning_rate=6e-4, warmup_steps=2000),
        precision=PrecisionConfig(compute="bfloat16"),
        # Under jit, GSPMD would sum gradients over devices in each microbatch.
        parallel=ParallelConfig(strategy="shard_map", accumulation=4),
    )
