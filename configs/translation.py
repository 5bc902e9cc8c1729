"""English -> German, from the gettext catalogues inside Django.

Command:  pip install -r requirements-pairs.txt
          python -m experiments.train --config=configs/translation.py --workdir=runs/de \
              --devices=8
          python -m experiments.score --workdir=runs/de --beam=4 --num=0
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
        prompt="This field is required.",
        data=DataConfig(
            source="gettext",
            name="django",
            language="de",
            vocab_size=1024,
            seq_len=96,
            source_len=48,
            batch_size=32,
            validation_share=0.1,
        ),
        model=Seq2SeqConfig(width=128, num_layers=2, num_heads=4, dropout=0.2),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=60),
        parallel=ParallelConfig(strategy="jit"),
    )
