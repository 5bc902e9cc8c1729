"""A folder of Hugging Face becomes a run that trains, and the run becomes such a folder."""

import json
import shutil

import jax
import numpy as np
import pytest

from experiments.run.restore import load_run
from experiments.studies.hub.compare import load, logits_of, tensors
from tests.experiments.runs import ROOT, run, small, write_corpus

RECORDED = ROOT / "tests/lm/models/hub/recorded"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    write_corpus(folder / "corpus")
    given = f"--model={RECORDED}/llama-1", f"--workdir={folder}/run"
    run("import_hf", *given, "--devices=2")
    return folder


def test_an_import_goes_back_bit_for_bit(folder):
    told = run("export_hf", f"--workdir={folder}/run", f"--to={folder}/back")
    assert told.stdout.endswith("max_logit_difference 0\n")
    assert tensors(folder / "back") == tensors(RECORDED / "llama-1")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / "back" / name).read_bytes() == (
            RECORDED / "llama-1" / name
        ).read_bytes()
    before, after = (
        json.loads((x / "config.json").read_text())
        for x in (folder / "back", RECORDED / "llama-1")
    )
    assert {name: before[name] for name in after} == after


def test_an_import_trains_under_any_strategy_and_is_exported(folder):
    given = {
        "data.source": "text", "data.path": folder / "corpus", "data.seq_len": 24,
        "data.cache": folder / "cache", "parallel.strategy": "fsdp", "steps": 3,
        "optim.warmup_steps": 0, "optim.learning_rate": 0.01, "eval_every": 0,
        "save_every": 0,
    }  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in given.items()]
    run("train", f"--workdir={folder}/run", "--devices=4", *flags)
    run(
        "compress", f"--workdir={folder}/run", "--checkpoint=latest",
        f"--to={folder}/smaller", "--config.model.mlp_width=12",
        "--config.compress.quantise.weights=int8", "--devices=2",
    )  # fmt: skip
    to = folder / "trained"
    run("export_hf", f"--workdir={folder}/smaller", "--dtype=float32", f"--to={to}")
    assert (to / "tokenizer.json").read_bytes() == (
        RECORDED / "llama-1" / "tokenizer.json"
    ).read_bytes()
    _, task, params, _, _ = load_run(folder / "smaller", "latest")
    written = load(to)
    assert written.values["intermediate_size"] == 12
    tokens = np.arange(20)[None] % written.values["vocab_size"]
    theirs = logits_of(written, tokens, np.array([20]))
    ours = logits_of(written._replace(task=task, params=params), tokens, np.array([20]))
    np.testing.assert_array_equal(ours, theirs)
    trained, step = load_run(folder / "run", "latest")[2:4]
    began = load(RECORDED / "llama-1").params
    moved = np.asarray(trained["embedding"]) - np.asarray(began["embedding"])
    assert step == 3 and np.abs(moved).max() > 0.01  # it has learnt something
    # The model is what the folder decided, so it stays; a run that has begun stays whole.
    for change in ("model.window=3", "optim.learning_rate=0.1"):
        again = run("train", f"--workdir={folder}/run", f"--config.{change}", check=False)
        assert again.returncode == 2
        assert f"belongs to another config: {change.split('=')[0]} is" in again.stderr


def test_a_run_of_our_own_is_exported(folder, tmp_path):
    """With its own tokenizer; what transformers makes of it is in record.py."""
    flags = small(folder, steps=1, eval_every=0, save_every=0)
    run("train", *flags, f"--workdir={folder}/own")
    run("export_hf", f"--workdir={folder}/own", f"--to={tmp_path}/own", "--file_gb=0.00002")
    values = json.loads((tmp_path / "own" / "config.json").read_text())
    assert values["architectures"] == ["LlamaForCausalLM"]
    _, task, params, _, _ = load_run(folder / "own", "latest")
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "own").params, params)


def test_what_cannot_be_imported_is_refused(folder, tmp_path):
    """What is wrong with a model itself is in tests/lm/models/hub."""

    def refused(reason: str, *flags: object, change=None) -> None:
        model = tmp_path / "model"
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(RECORDED / "gpt2-1", model)
        if change:
            change(model)
        given = flags or (f"--model={model}", f"--workdir={tmp_path}/run")
        result = run("import_hf", *given, check=False)
        assert result.returncode == 2, result.stderr
        assert reason in result.stderr
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "run").exists()

    refused("no --model given", f"--workdir={tmp_path}/run")
    given = f"--model={RECORDED}/gpt2-1", f"--workdir={folder}/run"
    refused("run holds a run already; give another --workdir", *given)
    refused(
        "is not the folder of a model", f"--model={tmp_path}", f"--workdir={tmp_path}/run"
    )
    refused("no tokenizer.json", change=lambda model: (model / "tokenizer.json").unlink())
