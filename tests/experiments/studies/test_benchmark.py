"""The benchmark's sides train the same model, and its figures are what it says."""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.processes.children import own_cores
from experiments.run.build import build_task
from experiments.studies.benchmark.figures import report
from experiments.studies.benchmark.rounds import answer, end, start, turn
from experiments.studies.benchmark.shapes import SHAPES, Shape, flops_per_token
from experiments.studies.benchmark.sides import bare_loss, experiment, random_tokens
from tests.experiments.runs import run


def test_bare_jax_is_the_same_model():
    shape = Shape(50, 16, 2, 4, 12, 3)
    task = build_task(experiment(shape, "jit", "float32"), shape.vocab_size)
    params = jax.jit(task.init)(jax.random.key(0))
    params = jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, params)
    tokens = jnp.asarray(random_tokens(shape))
    batch = {"tokens": tokens, "segments": jnp.ones_like(tokens), "row": jnp.arange(3)}
    loss, sums = jax.jit(task.loss, static_argnums=2)(params, batch, None)
    bare = jax.jit(bare_loss, static_argnums=2)(params, tokens, shape.num_heads)
    np.testing.assert_allclose(bare, loss / sums["tokens"], rtol=1e-5)


def test_flops_of_the_small_shape():
    # 6 layers of 12 x 256 x 256 and the head, six times; 12 x 6 x 256 x 256 of attention.
    assert flops_per_token(SHAPES["small"]) == pytest.approx(33.4e6, rel=1e-3)


def side(losses: str) -> list[list[str]]:
    program = "from experiments.studies.benchmark.turns import serve\n"
    program += f"serve(iter({losses}).__next__)"
    return [[sys.executable, "-c", program]]


def test_a_side_takes_its_turns_and_ends():
    processes = start(side("[5.0, 4.0, 3.0, 2.0, float('nan'), 1.0]"))
    assert answer(processes)["loss"] == 5.0
    assert turn(processes, 2)["finite"]  # 4 is not timed, 3 and 2 are
    result = turn(processes, 1)  # nan is not timed
    assert result["finite"] and result["seconds"] >= 0 and result["peak"] > 0
    end(processes)
    assert processes[0].returncode == 0


def test_a_side_that_fails_is_named_with_its_last_words():
    processes = start([[sys.executable, "-c", "raise SystemExit('no luck')"]])
    with pytest.raises(RuntimeError, match="no luck"):
        answer(processes)
    end(processes)


def test_ratios_are_taken_within_a_round(capsys):
    # The second round was slow for all: rates differ, ratios do not.
    seconds = {
        "products": [2.0, 2.0],
        "loader": [0.5, 0.5],
        "lockstep": [1.0, 4.0],
        "nanogpt-eager": [2.0, 8.0],
    }
    names = ("lockstep", "nanogpt-eager")
    report(
        SHAPES["small"],
        seconds,
        peak=dict.fromkeys(names, 1.5e9),
        first_step=dict.fromkeys(names, 4.0),
        loss=dict.fromkeys(names, 5.6),
    )
    printed = capsys.readouterr().out
    assert "4096 x 4096: 69 GFLOP/s" in printed  # 2 x 4096^3 / 2 s
    assert "loader alone: 4.1 M tokens/s" in printed  # 500 x 16 x 256 / 0.5 s
    rows = {line.split(" | ")[0].strip("| "): line for line in printed.splitlines()}
    # 4096 tokens in the median of 1 and 4 s; 2.00 times nanoGPT; 33.4 MFLOP a token.
    assert "| lockstep | 1638 | 2.00 | 1.00 | 80% | 1.50 GB | 4.0 s" in rows["lockstep"]
    assert "| 819 | 1.00 | 0.50 |" in rows["nanogpt-eager"]


def test_an_unknown_side_is_refused():
    result = run("studies.benchmark", "--only=lockstep,nanoGPT", check=False)
    assert result.returncode == 2
    assert "--only=nanoGPT" in result.stderr and "bare" in result.stderr


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 4, 5, 6})
    assert [own_cores(i, 2) for i in range(2)] == [{0, 1}, {4, 5}]
    assert own_cores(3, 5) == {5}
    assert own_cores(2, 6) == {0, 1, 4, 5, 6}
    assert own_cores(0, 1, 1) == {0} and own_cores(1, 2, 1) == {1}
    assert own_cores(1, 2, 4) == {0, 1, 4, 5, 6}  # there are not so many
