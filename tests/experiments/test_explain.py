"""What `explain` prints: the closed form met, and what does not belong named."""

from functools import partial

import pytest

from experiments.planning.explanation import unexpected
from parallel.config import ParallelConfig
from parallel.cost.closed_forms import cut_of
from parallel.cost.ledger import Entry, step_ledger
from parallel.exchange.config import ExchangeConfig
from parallel.local import LocalConfig
from tests.experiments.runs import run, small, write_corpus
from tests.parallel.exchange.test_exchange import SGD
from tests.parallel.toy import batches, toy_learner, toy_program

METRICS = 400  # bytes of the sums that no closed form counts: a few numbers a parameter


def entries_and_form(strategy: str, num_layers: int = 1, **config):
    """Return the ledger, and the closed form as a function of the task's cut."""
    learner = toy_learner(SGD, num_layers=num_layers, bias=False, num_kv_heads=0)
    program = toy_program(strategy, learner, **config)
    batch = program.place(batches(1)[0])
    compiled = program.step.lower(program.abstract, batch).compile()
    entries = step_ledger(compiled, program.mesh)
    config = ParallelConfig(strategy=strategy, **config)
    params = program.abstract_portable.params
    kinds = {entry.kind for entry in entries if entry.sent_bytes > METRICS}
    assert kinds <= config.row.kinds(config)
    cut = cut_of(learner.task, params, batches(1)[0], "cpu")
    return entries, cut, partial(config.row.sent_bytes, config, params, program.mesh)


def total(entries: list[Entry], *kinds: str) -> float:
    return sum(e.sent_bytes for e in entries if not kinds or e.kind in kinds)


def sent(strategy: str, accumulation: int = 1, slices: int = 1, **exchange):
    entries, _, form = entries_and_form(
        strategy,
        accumulation=accumulation,
        slice=slices,
        data=8 // slices,
        exchange=ExchangeConfig(**exchange),
        local=LocalConfig(every=4, fragments=2, overlap=1),
    )
    return total(entries), form(None)


@pytest.mark.parametrize("algorithm", ["psum", "ring", "all_gather"])
def test_algorithms_send_their_closed_forms(algorithm):
    found, expected = sent("shard_map", algorithm=algorithm)
    assert expected <= found <= expected + METRICS


@pytest.mark.parametrize("codec", ["int8", "top_k", "dgc", "power_sgd"])
def test_codecs_send_their_closed_forms(codec):
    found, expected = sent("shard_map", codec=codec, keep=0.1, rank=2, warmup_steps=8)
    assert expected <= found <= expected + METRICS


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
    found, expected = sent(strategy, **options)
    assert expected <= found <= expected * 1.01 + METRICS


@pytest.mark.parametrize("degrees", [{"data": 2, "fsdp": 4}, {"data": 4, "fsdp": 2}])
def test_hybrid_sharding_sends_its_closed_form(degrees):
    entries, cut, form = entries_and_form("hsdp", **degrees)
    assert form(cut) <= total(entries) <= form(cut) + METRICS


@pytest.mark.parametrize("degrees", [{"data": 2, "tensor": 4}, {"data": 4, "tensor": 2}])
def test_split_layers_send_their_closed_form(degrees):
    entries, cut, form = entries_and_form("tensor", num_layers=2, **degrees)
    rows, length = batches(1)[0]["tokens"].shape
    # In the loss three numbers for each token: a largest logit, a sum, the target's logit.
    tensor, tokens = degrees["tensor"], rows * (length - 1) / degrees["data"]
    numbers = 3 * 4 * tokens * 2 * (tensor - 1) / tensor
    assert numbers <= total(entries) - form(cut) <= numbers + METRICS


@pytest.mark.parametrize("strategy", ["gpipe", "1f1b", "interleaved"])
def test_pipelines_sum_and_hand_on_in_every_tick_as_their_closed_form(strategy):
    entries, cut, form = entries_and_form(
        strategy, num_layers=4, data=4, stage=2, accumulation=4
    )
    sums = form(cut._replace(carry=0.0))
    assert sums <= total(entries, "all-reduce") <= sums + METRICS
    assert total(entries, "collective-permute") == form(cut) - sums > 0


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


def test_a_program_from_the_cache_tells_how_often_its_own_replicas_meet():
    found = [
        total(entries_and_form("diloco", data=4, local=LocalConfig(every=every))[0])
        for every in (50, 100)
    ]
    assert found[0] == pytest.approx(2 * found[1])
