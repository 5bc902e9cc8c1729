"""What does not fit is refused with both numbers, before anything is allocated."""

import jax
import pytest

from configs import fields
from configs.base import Experiment
from configs.tiny import get_config
from experiments.run.check import check_compress
from experiments.run.compression.make import check_smaller
from lm.compress.config import CompressConfig
from lm.models.hmm import HmmConfig
from tests.lm.compress.model import tree

WRONG = {  # overrides, as in a shell -> what the message must say
    "quantise.activations=live": "would differ from device to device",
    "quantise.weights=int8 quantise.group=5": "quantise.group 5 does not divide the 16",
    "quantise.weights=int4 quantise.matrices=kernal": "matches no matrix of this model",
    "quantise.weights=int4 quantise.matrices=(": "no regular expression",
    "prune.kind=n_m prune.keep=4": "keep 4 is not less than compress.prune.group 4",
    "prune.kind=n_m prune.group=5": "prune.group 5 does not divide the 16 inputs of",
    "prune.kind=magnitude prune.begin=9 prune.end=9": "end 9 is not after compress.prune",
    "prune.kind=random prune.end=30": "pruning ends at update 30",
    "low_rank.kind=svd low_rank.rank=9": "rank 9 is more than the rank 8 that",
    "distil.share=0.7": "no effect without compress.distil.teacher",
    "distil.teacher=a distil.top_k=99": "top_k 99 is more than the 50 tokens",
}
BOUNDS = {  # refused by the walk over the fields
    "prune.kind=magnitude prune.sparsity=1.0": "sparsity is 1.0; it must be above 0",
    "prune.kind=magnitude prune.sparsity=-0.1": "sparsity is -0.1",
    "prune.sparsity=0.6": "no effect where compress.prune.kind is 'none'",
    "low_rank.kind=svd low_rank.rank=0": "low_rank.rank is 0; it must be at least 1",
    "quantise.weights=int5": "weights is 'int5'; choose one of none, int8, int4",
    "distil.temperature=0.0": "distil.temperature is 0.0; it must be above 0",
}


def given(overrides: str, config):
    for each in overrides.split():
        name, _, text = each.partition("=")
        usual = fields.flatten(config)[name]
        fields.set_field(config, name, type(usual)(text))
    return config


def test_what_does_not_fit_is_refused():
    shapes = jax.eval_shape(tree)
    CompressConfig().validate(shapes, 20, 50)
    for overrides, message in WRONG.items():
        with pytest.raises(ValueError) as error:
            given(overrides, CompressConfig()).validate(shapes, 20, 50)
        assert message in str(error.value), overrides
    for overrides, message in BOUNDS.items():
        config = Experiment(compress=given(overrides, CompressConfig()))
        with pytest.raises(ValueError) as error:
            fields.check(config)
        assert message in str(error.value), overrides


def test_families_and_strategies_that_do_not_suit_are_refused():
    config = given("compress.prune.kind=magnitude", Experiment())
    for strategy in ("zero1_whole", "local_sgd"):
        config.parallel.strategy = strategy
        with pytest.raises(ValueError, match="prune.kind is set, but under strategy"):
            check_compress(config)
    config.model = HmmConfig(training="em")
    with pytest.raises(ValueError, match="a HmmConfig is trained by expectation"):
        check_compress(config)


def test_a_smaller_run_is_of_the_same_model():
    for overrides, message in {
        "model.width=64": "model.width is 128 in the run and 64 here; only compress",
        "data.seq_len=64": "data.seq_len is 128 in the run and 64 here",
        "model.num_heads=8": "model.num_heads is 8, but the run has 4",
    }.items():
        with pytest.raises(ValueError) as error:
            check_smaller(get_config(), given(overrides, get_config()))
        assert message in str(error.value), overrides
