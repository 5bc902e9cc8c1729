"""What `explain` prints: the closed form met, and what does not belong named."""

import pytest

from experiments.explain import unexpected
from parallel.closed_forms import expected_bytes, expected_kinds
from parallel.exchange_config import ExchangeConfig
from parallel.ledger import Entry, ledger
from parallel.local import LocalConfig
from parallel.strategies import ParallelConfig
from tests.experiments.runs import run, small, write_corpus
from tests.parallel.test_exchange import SGD
from tests.parallel.toy import batches, toy_learner, toy_program

METRICS = 200  # bytes of the sums that no closed form counts


def sent(strategy: str, accumulation: int = 1, slices: int = 1, **exchange):
    config = {
        "accumulation": accumulation,
        "slice": slices,
        "data": 8 // slices,
        "exchange": ExchangeConfig(**exchange),
        "local": LocalConfig(every=4, fragments=2, overlap=1),
    }
    program = toy_program(strategy, toy_learner(SGD), **config)
    batch = program.place(batches(1)[0])
    compiled = program.step.lower(program.abstract, batch).compile()
    entries = ledger(compiled.as_text(), program.mesh)
    config = ParallelConfig(strategy=strategy, **config)
    params = program.abstract_portable.params
    kinds = {entry.kind for entry in entries if entry.sent_bytes > METRICS}
    assert kinds <= expected_kinds(config)
    total = sum(entry.sent_bytes for entry in entries)
    return total, expected_bytes(config, params, program.mesh)


@pytest.mark.parametrize("algorithm", ["psum", "ring", "all_gather"])
def test_algorithms_send_their_closed_forms(algorithm):
    total, expected = sent("shard_map", algorithm=algorithm)
    assert expected <= total <= expected + METRICS


@pytest.mark.parametrize("codec", ["int8", "top_k", "dgc", "power_sgd"])
def test_codecs_send_their_closed_forms(codec):
    total, expected = sent("shard_map", codec=codec, keep=0.1, rank=2, warmup_steps=8)
    assert expected <= total <= expected + METRICS


@pytest.mark.parametrize(
    "strategy, options",
    [
        ("shard_map", {"accumulation": 2, "every": 1}),
        ("shard_map", {"slices": 2, "algorithm": "hierarchical"}),
        ("shard_map", {"slices": 2, "algorithm": "hierarchical", "codec": "int8"}),
        ("streaming_diloco", {}),
    ],
)
def test_combinations_send_their_closed_forms(strategy, options):
    total, expected = sent(strategy, **options)
    assert expected <= total <= expected * 1.01 + METRICS


def test_what_has_no_place_in_a_strategy_is_named():
    from configs.base import Experiment

    config = Experiment(parallel=ParallelConfig(strategy="shard_map"))
    gather = Entry("all-gather", ("data",), ("f32",), 1, 1000, 1000, 3500, "a.py:1", None)
    reduce = gather._replace(kind="all-reduce", sent_bytes=7000)
    tiny = gather._replace(kind="all-to-all", sent_bytes=7)
    assert unexpected(config, [reduce, gather, tiny]) == [gather]


def test_the_command(tmp_path):
    write_corpus(tmp_path / "corpus")
    flags = small(tmp_path, **{"parallel.strategy": "zero1"})
    said = run("explain", *flags, "--devices=8").stdout
    assert "zero1 over {'data': 8}" in said and "unexpected" not in said
    assert "reduce-scatter  data  f32" in said and "parallel/collectives.py:" in said
    assert "closed form" in said
