"""A smaller run of a trained one, end to end."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer

from experiments.run.compression.teacher import Teacher, check_teacher, with_teacher
from experiments.run.restore import load_run
from experiments.run.workdir import read_config, read_tokenizer
from lm.compress import stored
from lm.compress.distil import Cache, DistilConfig
from parallel.mesh import data_mesh
from tests.experiments.runs import losses, run, small, write_corpus
from tests.experiments.test_bad_input import assert_refused
from tests.parallel.toy import VOCAB, toy_task
from tests.parallel.toy import batches as toy_batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smaller")
    write_corpus(folder / "corpus")
    run("train", *small(folder, steps=4), f"--workdir={folder}/a")
    return folder


def test_a_compressed_run_has_the_loss_and_bytes_that_are_told_and_trains_on(folder):
    a, b = folder / "a", folder / "b"
    run(
        "compress", f"--workdir={a}", f"--to={b}",
        "--config.compress.quantise.weights=int4", "--config.compress.prune.kind=n_m",
        "--config.compress.prune.straight_through=true",
        "--config.model.num_heads=1", "--config.model.mlp_width=64", "--calibration=loss",
    )  # fmt: skip
    told = json.loads((b / "compression.json").read_text())
    file = b / "compressed.safetensors"
    assert told["after"]["bytes"] == file.stat().st_size < told["before"]["bytes"] / 3
    assert told["after"]["nonzero"] < 0.75 * told["after"]["parameters"]
    assert losses(a, "eval")[4] == pytest.approx(told["before"]["loss"], rel=1e-5)
    # What evaluate, generate and export load is what the file holds.
    config, _, params, step, _ = load_run(b, "best")
    held = stored.read(file)
    np.testing.assert_allclose(params["embedding"], held["embedding"], rtol=1e-6)
    kernel = params["layers"][0]["attention"]["out"]["kernel"]
    expected = held["layers"][0]["attention"]["out"]["kernel"]
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)
    assert step == 0 and config.model.head_width == 16 and kernel.shape == (16, 32)
    run("train", f"--workdir={b}", "--config.parallel.strategy=fsdp", "--config.steps=6")
    trained, _ = load_run(b, "latest")[2:4]
    kernel = np.asarray(trained["layers"][0]["attention"]["out"]["kernel"])
    assert np.all((kernel.reshape(-1, 4, 32) != 0).sum(1) <= 2)
    assert_refused(
        run("compress", f"--workdir={a}", f"--to={b}", check=False), "holds a run already"
    )


def test_a_teacher_has_the_tokenizer_and_the_rows_of_its_student(folder, capsys):
    config = read_config(folder / "a")
    tokenizer = read_tokenizer(folder / "a")
    config.compress.distil.teacher = str(folder / "a")
    check_teacher(config, SimpleNamespace(tokenizer=tokenizer))
    other = Tokenizer.from_str(tokenizer.to_str())
    other.add_tokens(["another"])
    with pytest.raises(ValueError, match="of 300 tokens, than this run, of 301"):
        check_teacher(config, SimpleNamespace(tokenizer=other))
    config.data.seq_len = 64
    with pytest.raises(ValueError, match="reads rows of 32 tokens, but data.seq_len is 64"):
        check_teacher(config, SimpleNamespace(tokenizer=tokenizer))
    without = shutil.ignore_patterns("checkpoints")
    shutil.copytree(folder / "a", folder / "untrained", ignore=without)
    config.compress.distil.teacher = str(folder / "untrained")
    with pytest.raises(SystemExit, match="2"):
        with_teacher(SimpleNamespace(mesh=data_mesh(1)), config)
    assert "untrained/checkpoints holds no checkpoint yet" in capsys.readouterr().err


def test_a_teacher_tells_its_largest_logits_live_and_from_disk(tmp_path):
    task, rows = toy_task(), toy_batches(1)[0]
    params = jax.jit(task.init)(jax.random.key(0))
    mesh, config = data_mesh(8), DistilConfig(teacher="a", top_k=5)
    size = VOCAB - 3  # the last rows are no tokens
    teacher = Teacher(task, params, size, config, mesh, Cache(tmp_path, "a"))
    logits_BTV = np.asarray(jax.jit(task.logits)(params, rows))[..., :size]
    uneven = {name: x[:13] for name, x in rows.items()}  # 8 devices do not divide 13 rows
    for given in (uneven, rows, uneven):
        said = teacher(given)
        expected = logits_BTV[: len(said.ids_BTI)]
        assert len(expected) == len(given["row"])
        order = np.sort(expected, -1)[..., ::-1]
        np.testing.assert_allclose(said.logits_BTK, order[..., :5], atol=1e-5)
        chosen = np.take_along_axis(expected, said.ids_BTI, -1)
        np.testing.assert_allclose(chosen, said.logits_BTK, atol=1e-5)
    every = Teacher(task, params, size, DistilConfig(teacher="a"), mesh)(rows)
    assert every.ids_BTI.size == 0  # all logits, in the order of their tokens
    np.testing.assert_allclose(every.logits_BTK, logits_BTV, atol=1e-5)
    teacher.live = None  # a row that is on disk asks no model
    again = teacher(rows)
    np.testing.assert_array_equal(again.ids_BTI[:13], said.ids_BTI)
