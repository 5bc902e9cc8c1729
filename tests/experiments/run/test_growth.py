"""A run whose batch grows: against single steps by hand, continued, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.base import Experiment
from experiments.run.build import Run, build
from experiments.run.check import check
from experiments.run.loop import train
from experiments.run.phases.phase import phases_of
from experiments.run.survival.clock import Clock
from lm.data.config import DataConfig
from lm.data.prepare import prepare
from lm.data.rows.order import Order, step_rows
from lm.models.transformer.config import TransformerConfig
from lm.optim import OptimConfig
from parallel.config import ParallelConfig
from tests.experiments.run.test_resume import final_arrays
from tests.experiments.runs import losses, write_corpus

SIZES = [8, 8, 8, 16, 16, 16]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("growth")
    config = Experiment(
        steps=6, eval_every=0, eval_batches=1, save_every=0,
        data=DataConfig(
            source="text", path=str(write_corpus(folder / "corpus", 8)), vocab_size=257,
            cache=str(folder / "cache"), seq_len=16, batch_size=8, growth=((3, 16),),
        ),
        model=TransformerConfig(width=16, num_layers=1, num_heads=2),
        optim=OptimConfig(
            name="sgd", learning_rate=0.5, weight_decay=0.0, schedule="constant",
            clip_norm=0.0,
        ),
        parallel=ParallelConfig(strategy="shard_map"),
    )  # fmt: skip
    mesh, data = check(config), prepare(config.data)
    task, program = build(config, data.tokenizer.get_vocab_size(), mesh)
    (phase,) = phases_of(config)
    return Run(phase, folder / "whole", data, task, program, Clock())


def in_folder(run, name):
    folder = run.workdir.parent / name
    folder.mkdir(exist_ok=True)
    return run._replace(workdir=folder)


def by_hand(run):
    """Take the steps on one device, on the rows that batches of one row read."""
    rows, task, read = run.data.train, run.task, 0
    params = task.init(jax.random.key(0))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def mean_grads(params, batch):
        loss, sums = task.loss(params, batch, None)
        return loss / sums["tokens"], sums["loss"] / sums["tokens"]

    found, tx = [], optax.sgd(0.5)
    for size in SIZES:
        index = [step_rows(rows, Order(0, 1), read + k)[0] for k in range(size)]
        read += size
        batch = {"tokens": rows.tokens[index], "segments": rows.segments[index]}
        batch = {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()}
        grads, loss = mean_grads(params, batch)
        found.append(float(loss))
        params = optax.apply_updates(params, tx.update(grads, tx.init(params))[0])
    return found


def test_a_growing_run_is_its_steps_by_hand_and_goes_on_bitwise(run, capsys):
    whole, parts = in_folder(run, "whole"), in_folder(run, "parts")
    train(whole)
    assert "after 3 steps a batch has 16 rows" in capsys.readouterr().err
    found = losses(whole.workdir)
    np.testing.assert_allclose(list(found.values()), by_hand(run), rtol=2e-5)
    for stop_at in (2, 3, None):  # before and at the change
        train(parts, stop_at)
    assert losses(parts.workdir) == found
    ours, theirs = (final_arrays(each.workdir, 6) for each in (parts, whole))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_size_is_checked_against_the_devices(run):
    for growth, parallel, words in [
        (((3, 20),), {}, "data.growth: a batch of 20 is not divisible by data degree 8"),
        (((3, 24),), {"accumulation": 2}, "8 is not divisible by data degree 8 x acc"),
    ]:
        config = Experiment(
            data=DataConfig(batch_size=8, growth=growth),
            parallel=ParallelConfig(strategy="shard_map", **parallel),
        )
        with pytest.raises(ValueError, match=words):
            check(config)
