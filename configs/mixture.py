"""Code and prose mixed: the standard library, and descriptions of the installed packages.

Command:  python -m experiments.train --config=configs/mixture.py --workdir=runs/mixture \
              --devices=8
          In the proportions of the text: '--config.data.sources[1].weight=1'
          --config.data.sampling.rates=rows
Cost:     1.64 M tokens, as configs/tiny.py
Expected: the text, and so the loss, depends on what is installed
"""

import sysconfig

from configs.base import Experiment
from lm.data.config import DataConfig
from lm.data.rows.sampling import SamplingConfig
from lm.data.sources.config import SourceConfig
from lm.models.transformer.config import TransformerConfig
from lm.optim import OptimConfig
from parallel.config import ParallelConfig

DESCRIPTIONS = f"{sysconfig.get_path('purelib')}/*.dist-info/METADATA"


def get_config() -> Experiment:
    return Experiment(
        steps=400,
        data=DataConfig(
            sources=(
                SourceConfig(label="code", source="stdlib"),
                SourceConfig(
                    label="prose",
                    source="text",
                    path=DESCRIPTIONS,
                    on_bad_record="skip",
                    weight=0.5,
                ),
            ),
            # A third of the rows is prose, which is an eighth of the text.
            sampling=SamplingConfig(strata="key", rates="weights"),
            vocab_size=2048,
            seq_len=128,
            batch_size=32,
        ),
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
