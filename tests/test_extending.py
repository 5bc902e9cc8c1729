"""A new part is its own code and one row of a table; then that table's laws hold for it."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import base, fields
from configs.base import Experiment
from experiments.run.check import check
from lm.data.cleaning.stage import Finding, Stage
from lm.data.cleaning.table import STAGES
from lm.data.config import DataConfig
from lm.data.prepare import prepare
from lm.data.sources.corpus import Corpus, Document
from lm.data.sources.table import SOURCES, Source
from lm.data.tokenizer import encode_documents
from lm.models.setting import Setting
from lm.task import Task, next_token_loss
from parallel.config import ParallelConfig
from parallel.exchange.algorithms import ALGORITHMS, Algorithm
from parallel.exchange.codec import BY_GATHERING, Codec, flatten, num_elements, stateless
from parallel.exchange.config import CODECS, ExchangeConfig
from parallel.layout import REPLICATED
from parallel.mesh import batch_axes
from parallel.sharded import jit_program
from parallel.strategies import STRATEGIES, Strategy
from tests.lm.data import test_prepare
from tests.parallel import test_families, test_strategies
from tests.parallel.exchange import test_algorithms, test_codecs
from tests.parallel.toy import SGD, toy_learner, toy_program


def dealt_program(learner, mesh, config):
    """Deal the rows out to the devices like cards, one by one."""
    program, rows = (
        jit_program(learner, mesh, config.accumulation, REPLICATED),
        NamedSharding(mesh, P(batch_axes(mesh))),
    )

    def dealt(x):
        hands = x.reshape(-1, mesh.size, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(hands.reshape(x.shape), rows)

    def step(state, batch):
        return program.step(state, jax.tree.map(dealt, batch))

    return program._replace(step=jax.jit(step, donate_argnums=0))


def test_a_strategy(monkeypatch):
    row = Strategy(dealt_program, lambda *_: None, lambda config: {"all-reduce"})
    with pytest.raises(ValueError, match="'dealt'; choose one of jit, "):
        fields.check(Experiment(parallel=ParallelConfig(strategy="dealt")))
    monkeypatch.setitem(STRATEGIES, "dealt", row)
    check(Experiment(parallel=ParallelConfig(strategy="dealt")))
    test_strategies.test_parameters_equal_one_device("dealt", 8)
    test_strategies.test_accumulation_is_exact_with_dropout_and_weights("dealt")
    test_strategies.test_overflow_skips_the_step_everywhere("dealt")
    # What has an effect follows from the row: this one has no exchange.
    exchanging = ParallelConfig(strategy="dealt", exchange=ExchangeConfig(codec="int8"))
    with pytest.raises(ValueError, match="no effect where parallel.strategy is 'dealt'"):
        fields.check(Experiment(parallel=exchanging))
    monkeypatch.setitem(STRATEGIES, "dealt", row._replace(exchanges=True))
    fields.check(Experiment(parallel=exchanging))


def truncated() -> Codec:
    """Send the sign, the exponent and three bits of the mantissa."""

    def total(tree, state, key, across):
        x_n, unflatten = flatten(tree)
        bits_n = jax.lax.bitcast_convert_type(x_n, jnp.uint32) & jnp.uint32(0xFFF00000)
        sent_n = jax.lax.bitcast_convert_type(bits_n, jnp.float32)
        total_n = jax.lax.all_gather(sent_n, across.axes).sum(0)
        return unflatten(total_n), unflatten(x_n - sent_n), state

    def sent_bytes(params, degree):
        return 1.5 * num_elements(params) * (degree - 1)

    return Codec(stateless, total, sent_bytes, BY_GATHERING)


def test_a_codec(monkeypatch):
    monkeypatch.setitem(CODECS, "truncated", lambda config: truncated())
    monkeypatch.setitem(test_codecs.ARGUMENTS, "truncated", {})
    exchange = ExchangeConfig(codec="truncated", error_feedback="on")
    parallel = ParallelConfig(strategy="shard_map", exchange=exchange)
    check(Experiment(parallel=parallel))
    for mesh in ("4", "2x4"):  # the second between slices alone
        test_codecs.test_nothing_is_lost_and_all_replicas_agree("truncated", mesh)
        test_codecs.test_error_feedback_conserves_over_steps("truncated", mesh)
    test_codecs.test_what_is_not_finite_shows("truncated")
    test_codecs.test_huge_and_tiny_numbers_are_conserved_and_zeros_are_zeros("truncated")


def all_to_one(x, axes):
    """Send everything to the first device, which sends the sum to all."""
    total = jax.lax.all_gather(x.astype(jnp.float32), axes).sum(0).astype(x.dtype)
    is_first = jax.lax.axis_index(axes) == 0
    return jax.lax.psum(jnp.where(is_first, total, 0), axes)


def all_to_one_elements(num, sizes):
    degree = math.prod(sizes)
    return num * (degree - 1) * (1 + 2 / degree)


def test_an_algorithm(monkeypatch):
    kinds = frozenset({"all-gather", "all-reduce"})
    row = Algorithm(all_to_one, all_to_one_elements, kinds)
    monkeypatch.setitem(ALGORITHMS, "all_to_one", row)
    exchange = ExchangeConfig(algorithm="all_to_one")
    parallel = ParallelConfig(strategy="shard_map", exchange=exchange)
    check(Experiment(parallel=parallel))
    counts = test_algorithms.test_the_ledger_counts_what_the_closed_form_says
    for sizes in test_algorithms.MESHES:
        test_algorithms.test_sum_on_every_device("all_to_one", sizes)
        counts("all_to_one", sizes)
    test_algorithms.test_sixteen_bits("all_to_one")
    test_algorithms.test_no_device_keeps_more_bits_than_it_sends("all_to_one")
    program = toy_program("shard_map", toy_learner(SGD), data=8, exchange=exchange)
    test_strategies.assert_trains_as_one_device(program)


@dataclass
class TableConfig:
    """A table of logits, one row for each token that came before."""

    reads: ClassVar[str] = "documents"
    trained_by: ClassVar[str] = "gradient"
    traces: ClassVar[bool] = False
    augments: ClassVar[bool] = False

    def validate(self, setting: Setting) -> None:
        pass

    def describe(self) -> str:
        return "table"

    def task(self, setting: Setting) -> Task:
        size = setting.vocab_size

        def loss(params, batch, key):
            logits_BTV = params["table"][batch["tokens"][:, :-1]]
            return next_token_loss(logits_BTV, lambda x: x, batch, 0)

        return Task(
            init=lambda key: {"table": 0.1 * jax.random.normal(key, (size, size))},
            loss=loss,
            logits=lambda params, batch: params["table"][batch["tokens"][:, :-1]],
            cache=lambda batch_size, length: (),
            decode=lambda params, cache, tokens, start: (params["table"][tokens], cache),
        )


def test_a_family(monkeypatch):
    with pytest.raises(ValueError, match="TableConfig; expected one of TransformerConfig"):
        check(Experiment(model=TableConfig()))
    monkeypatch.setitem(base.FAMILIES, "table", TableConfig)
    check(Experiment(model=TableConfig()))

    def toy_task():
        return TableConfig().task(Setting(test_families.VOCAB, 0))

    family = toy_task, test_families.batches
    monkeypatch.setitem(test_families.FAMILIES, "table", family)
    for strategy in ("jit", "shard_map", "fsdp"):
        test_families.test_parameters_equal_one_device("table", strategy)


def numbers(config) -> Corpus:
    def documents(split):
        first = 0 if split == "train" else 300
        return (
            Document(f"{config.name} {i} {i * i}\n", str(i))
            for i in range(first, first + 300)
        )

    return Corpus({"source": "numbers", "name": config.name}, documents)


def test_a_source(monkeypatch, tmp_path):
    data = DataConfig(source="numbers", name="square", cache=str(tmp_path), vocab_size=300)
    data.seq_len, config = 32, Experiment(data=data)
    monkeypatch.setitem(SOURCES, "numbers", Source(numbers))
    with pytest.raises(ValueError, match="name is 'square', but it has no effect"):
        check(config)
    monkeypatch.setitem(SOURCES, "numbers", Source(numbers, reads=("name",)))
    check(config)
    prepared = prepare(data)
    texts = list(dict.fromkeys(numbers(data).texts("train")))
    expected = test_prepare.pairs_of_documents(encode_documents(prepared.tokenizer, texts))
    rows = zip(*prepared.train[:2], strict=True)
    assert test_prepare.pairs_of_rows(rows) == expected
    data.packing = "concat"  # which only sources of documents can be
    check(config)
    monkeypatch.setitem(SOURCES, "numbers", Source(numbers, pairs=True, reads=("name",)))
    with pytest.raises(ValueError, match="data.packing is 'concat', but it has no effect"):
        check(config)


@dataclass
class RepeatedConfig:
    most: int = 2


def num_lines(config: RepeatedConfig, document: Document) -> int:
    return document.text.count("\n")


def too_frequent(config: RepeatedConfig, sketches) -> list[int]:
    seen = Counter()
    verdicts = []
    for size in sketches:
        seen[size] += 1
        verdicts.append(seen[size] - config.most)
    return verdicts


def drop_frequent(config: RepeatedConfig, document: Document, verdict: int):
    found = [Finding(document.name, "frequent", verdict, "its number of lines is frequent")]
    return (None, found) if verdict > 0 else (document, [])


@dataclass
class DataConfigWithStage(DataConfig):
    repeated: RepeatedConfig = field(default_factory=RepeatedConfig)


def test_a_stage(monkeypatch, tmp_path):
    data = DataConfigWithStage(stages="repeated", source="numbers", cache=str(tmp_path))
    data.seq_len, data.vocab_size, data.leakage = 8, 300, "keep"
    monkeypatch.setitem(SOURCES, "numbers", Source(numbers))
    with pytest.raises(ValueError, match="'repeated', which is no stage; choose from"):
        check(Experiment(data=data))
    row = Stage(RepeatedConfig, drop_frequent, num_lines, too_frequent)
    monkeypatch.setitem(STAGES, "repeated", row)
    check(Experiment(data=data))
    with pytest.raises(ValueError, match="of validation is left: repeated drops 300"):
        prepare(data)  # every document has one line, and two are enough
    data.repeated.most = 310
    meta = prepare(data).meta
    assert meta["documents"] == {"train": 300, "validation": 10}
    assert meta["cleaning"]["repeated"]["validation"] == {"kept": 10, "dropped": 290}
