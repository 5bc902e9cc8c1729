"""English -> German, from the gettext catalogues inside Django.

Command:  pip install -r requirements-pairs.txt
          python -m experiments.train --config=configs/translation.py --workdir=runs/de \
              --devices=8
          python -m experiments.score --workdir=runs/de --beam=4 --num=0
          With a recurrent encoder and decoder: --config.model.kind=recurrent
          More pairs: --config.data.name= takes the catalogues of all installed packages.
Cost:     740 pairs; 0.21 M target tokens in 600 steps, 1.3 GB
Expected: with Django 5.2, a validation loss of 2.887 (bigram model 3.772) and, with a beam
          of 4, BLEU 35.9 and chrF 38.1. Copying the source has 40.6 and 32.4, because much
          of these texts are placeholders such as %(name)s; the commonest target has 0.0 and
          4.8. With more packages: pip install wagtail weblate django-cms django-oscar
          django-allauth djangorestframework, then --config.data.name=
          --config.data.batch_size=64 --config.steps=2000 --config.optim.warmup_steps=100.
          That ends at a validation loss of 1.738 (bigram model 3.430), BLEU 30.7 and chrF
          45.7 on 500 pairs; copying has 21.6 and 22.4
"""

from configs.base import Experiment
from lm.data.config import DataConfig
from lm.models.seq2seq.task import Seq2SeqConfig
from lm.optim import OptimConfig
from parallel.config import ParallelConfig


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
