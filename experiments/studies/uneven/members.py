"""What is compared: for each study a corpus, and members as overrides of one small config.

poisoned      a fifth of the training tokens are bad
partitions    four kinds of text, dealt to four shards in six ways, under methods that
              meet each step or rarely; and remedies
mixture       ten times more text of one kind than of the other
augmentation  little text, gone through many times
"""

from typing import NamedTuple

from configs.base import Experiment
from configs.sweeps.combine import Member
from configs.sweeps.strategies import local
from experiments.studies.uneven.corpora import POISONS, VOCAB_SIZE
from lm.data.config import DataConfig
from lm.data.rows.partition import PARTITIONS
from lm.models.transformer.config import TransformerConfig
from lm.optim import OptimConfig

SHARDS = 4


class Study(NamedTuple):
    corpus: str  # its folder has train and validation
    page: str  # in docs/questions
    members: dict[str, Member]  # all are compared with the first one
    shifted: str = ""  # corpus whose validation text is evaluated too


def one_layer(width: int) -> TransformerConfig:
    return TransformerConfig(
        width=width,
        num_layers=1,  # two learn to copy all at once, at a step that hangs on the seed
        num_heads=4,
        activation="swiglu",
        norm="rmsnorm",
        positions="rotary",
        bias=False,
    )


def base_config() -> Experiment:
    return Experiment(
        steps=1000,
        data=DataConfig(
            source="jsonl",
            tokenizer="pretrained",
            vocab_size=VOCAB_SIZE,
            seq_len=64,
            batch_size=16,
        ),
        model=one_layer(64),
        optim=OptimConfig(learning_rate=4e-3, warmup_steps=50),
    )


# The threshold lies between the scores of poison and most of those of clean text, which
# experiments.inspect lists.
FILTERED: Member = {
    "data.stages": "fix,normalise,exact_dedup,near_dedup,anomaly",
    "data.anomaly.threshold": 8.0,
}
WEIGHTED: Member = {
    "robust.weights": "tukey",
    "robust.settle": 50,
}
UNTREATED = "as it is"
AGAINST_POISON: dict[str, Member] = {
    UNTREATED: {},
    "filtered": FILTERED,
    "found and weighted": FILTERED | {"data.anomaly.action": "weight"},
    "weighted": WEIGHTED,
    "both": FILTERED | WEIGHTED,
}
POISONED: dict[str, Member] = {
    "clean": {},
    # What bad text costs if it does no harm but takes the place of good text; and what the
    # remedies cost where nothing is bad.
    "clean, a fifth fewer steps": {"steps": 800},
    "clean, filtered": FILTERED,
    "clean, weighted": WEIGHTED,
} | {
    f"{kind}; {remedy}": {"data.path": f"poison-{kind}"} | overrides
    for kind in POISONS
    for remedy, overrides in AGAINST_POISON.items()
}

METHODS: dict[str, Member] = {
    "each step": {"parallel.strategy": "shard_map"},
    "local SGD, H = 8": local("local_sgd", 8),
    "local SGD, H = 50": local("local_sgd", 50),
    "DiLoCo, H = 50": local("diloco", 50),
}
PLAIN_SGD: Member = {
    "optim.name": "sgd",
    "optim.learning_rate": 0.05,
    "optim.clip_norm": 0.0,
}
EQUAL = {
    f"{policy}; {method}": {"data.partition": policy} | METHODS[method]
    for policy in PARTITIONS
    for method in METHODS
}
NATURAL = {
    f"{policy}, natural{told}; each step": {
        "data.partition": policy,
        "data.shard_sizes": "natural",
        "parallel.strategy": "shard_map",
    }
    | weights
    for policy in ("kmeans", "dictionary")
    for told, weights in {"": {}, ", weighted": {"data.sampling.reweigh": True}}.items()
}
H_1 = {
    "each step": METHODS["each step"],
    "local SGD, H = 1": local("local_sgd", 1),
}
ORACLE = {
    f"{policy}; {method}{told}": {"data.partition": policy} | H_1[method] | optimizer
    for policy in ("hash", "dictionary")
    for told, optimizer in {"": {}, ", plain SGD": PLAIN_SGD}.items()
    for method in H_1
    if told or method != "each step"
}
REMEDIES = {
    f"dictionary, {share:.0%} by hash; {method}": {
        "data.partition": "dictionary",
        "data.shuffled_share": share,
    }
    | METHODS[method]
    for share in (0.1, 0.3)
    for method in ("local SGD, H = 50", "DiLoCo, H = 50")
} | {
    f"dictionary, natural, weighted; {method}": {
        "data.partition": "dictionary",
        "data.shard_sizes": "natural",
        "data.sampling.reweigh": True,
    }
    | METHODS[method]
    for method in ("local SGD, H = 50", "DiLoCo, H = 50")
}
SHARDED: dict[str, Member] = {
    name: {"data.shards": SHARDS} | member
    for name, member in (EQUAL | NATURAL | ORACLE | REMEDIES).items()
}

BY_KEY: Member = {"data.sampling.strata": "key"}
EQUAL_RATES = BY_KEY | {"data.sampling.temperature": 1e6}
DAMAGED: Member = {"data.augment.kind": "token_dropout", "data.augment.strata": "prose"}
MIXTURE: dict[str, Member] = {
    "as it is": {},
    "stratified batches": BY_KEY,
    "temperature 3": BY_KEY | {"data.sampling.temperature": 3.0},
    "equal rates": EQUAL_RATES,
    "equal rates, resampled": EQUAL_RATES | {"data.sampling.batches": "resampled"},
    "equal shares of the loss": BY_KEY
    | {
        "data.sampling.reweigh": True,
        "data.sampling.shares": {"code": 0.5, "prose": 0.5},
    },
    "rare kind damaged": BY_KEY | DAMAGED,
    "equal rates, rare kind damaged": EQUAL_RATES | DAMAGED,
}

TEN_EPOCHS = {"steps": 1350}
AUGMENTATION: dict[str, Member] = {
    "none": TEN_EPOCHS,
    **{
        f"{kind}, {rate:.0%}": TEN_EPOCHS
        | {"data.augment.kind": kind, "data.augment.rate": rate}
        for kind in ("token_dropout", "span_corruption")
        for rate in (0.05, 0.15)
    },
}

STUDIES = {
    "poisoned": Study("clean", "what-does-bad-text-cost", POISONED),
    "partitions": Study("kinds", "do-unlike-shards-hurt", SHARDED),
    "mixture": Study("mixture", "how-are-sources-mixed", MIXTURE, shifted="rare"),
    "augmentation": Study("small", "does-augmentation-help", AUGMENTATION),
}
