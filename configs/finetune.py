"""What experiments.import_hf fine-tunes with: AdamW at a low rate, on Python's library.

Command:  python -m experiments.import_hf --model=FOLDER --workdir=runs/x
          python -m experiments.train --workdir=runs/x --config.data.path='notes/*.txt' \
              --config.data.source=text
Cost:     200 steps of 8 rows of at most 512 tokens; the model decides the rest
Expected: nothing yet: the model and the tokenizer are those of FOLDER.
"""

from configs.base import Experiment
from lm.data.config import DataConfig
from lm.optim import OptimConfig


def get_config() -> Experiment:
    return Experiment(
        steps=200,
        eval_every=50,
        save_every=50,
        data=DataConfig(seq_len=512, batch_size=8),
        optim=OptimConfig(learning_rate=2e-5, warmup_steps=20),
    )
