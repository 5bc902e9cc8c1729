"""Each family of models through the commands: train, go on, evaluate, generate."""

import dataclasses
import json

import pytest

from configs.base import FAMILIES, Experiment
from configs.fields import from_dict
from experiments.run.workdir import family_name, read_config
from lm.models.recurrent import RecurrentConfig
from tests.experiments.runs import ROOT, losses, run, small, write_corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    write_corpus(folder / "corpus")
    return folder


def flags_of(folder, config: str, **overrides):
    """Return the flags of a small run of another config file."""
    flags = small(folder, **overrides)[1:]
    if config in ("hmm", "ngram"):
        flags = [flag for flag in flags if "--config.model." not in flag]
    flags = [flag for flag in flags if "num_heads" not in flag]
    return [f"--config={ROOT}/configs/{config}.py", *flags]


def test_every_family_says_what_it_is():
    for cls in FAMILIES.values():
        model = cls()
        assert model.reads in ("documents", "pairs") and isinstance(model.traces, bool)
        assert model.trained_by in ("gradient", "expectation", "counts")
        assert str(next(iter(vars(model).values()))) in model.describe().lower()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_is_read_as_it_was_written(family, tmp_path):
    model = FAMILIES[family]()
    first = dataclasses.fields(model)[0].name
    setattr(model, first, "changed" if isinstance(getattr(model, first), str) else 77)
    config = Experiment(model=model, seed=5)
    written = dataclasses.asdict(config) | {"family": family_name(config)}
    written |= {"fingerprint": "00"}
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert read_config(tmp_path) == config
    assert family_name(config) == family


def test_a_config_without_a_family_is_refused(tmp_path):
    written = dataclasses.asdict(Experiment(steps=7))
    (tmp_path / "config.json").write_text(json.dumps(written | {"fingerprint": "00"}))
    with pytest.raises(ValueError, match=r"config.json is not a run's .* \(no family\)"):
        read_config(tmp_path)
    nested = from_dict(Experiment, {"model": RecurrentConfig(), "optim": {"name": "sgd"}})
    assert nested.optim.name == "sgd" and nested.model == RecurrentConfig()


def test_an_lstm_trains_goes_on_elsewhere_and_generates(folder):
    model = {"model.truncate": 8, "model.num_layers": 2}
    flags = flags_of(folder, "lstm", steps=8, eval_every=0, **model)
    whole = [*flags, f"--workdir={folder}/whole", "--devices=2"]
    run("train", *whole)
    parts = [*flags, f"--workdir={folder}/parts"]
    run("train", *parts, "--devices=2", "--stop_at=4")
    pipeline = {"strategy": "1f1b", "stage": 2, "accumulation": 2}
    other = [f"--config.parallel.{name}={value}" for name, value in pipeline.items()]
    run("train", *parts, "--devices=4", *other)
    assert losses(folder / "parts") == pytest.approx(losses(folder / "whole"), rel=1e-5)
    assert json.loads((folder / "whole" / "config.json").read_text())["family"] == (
        "recurrent"
    )
    result = run(
        "generate", f"--workdir={folder}/whole", "--prompt=def ", "--max_new_tokens=9"
    )
    assert result.stdout.startswith("def ") and len(result.stdout) > 8
    result = run("score", f"--workdir={folder}/whole", check=False)
    assert result.returncode == 2
    assert "recurrent family, which has no decoder that writes targets" in result.stderr


@pytest.mark.parametrize(("config", "other"), [("hmm", "zero1"), ("ngram", "pmap")])
def test_counts_go_on_elsewhere_and_generate(folder, config, other):
    """Expected counts of a hidden Markov model, and counts of n-grams."""
    # A table of counts has another size in each evaluation, which is compiled for it.
    flags = flags_of(folder, config, steps=6, eval_every=0)
    whole, parts = folder / f"{config}-{other}", folder / f"{config}-{other}-parts"
    flags.append(f"--config.model.{'num_states=8' if config == 'hmm' else 'order=3'}")
    run("train", *flags, f"--workdir={whole}", "--devices=2")
    run("train", *flags, f"--workdir={parts}", "--devices=4", "--stop_at=3")
    run(
        "train", *flags, f"--workdir={parts}", "--devices=2",
        f"--config.parallel.strategy={other}",
    )  # fmt: skip
    one, two = (losses(workdir, "eval") for workdir in (whole, parts))
    # Counts have the same bits; expected counts are sums of floats.
    assert one == (two if config == "ngram" else pytest.approx(two, rel=1e-5))
    evaluated = run("evaluate", f"--workdir={whole}", "--checkpoint=latest")
    assert f"{one[6]:.5g}" in evaluated.stdout
    written = run("generate", f"--workdir={whole}", "--prompt=def ", "--max_new_tokens=9")
    assert written.stdout.startswith("def ")


def test_an_encoder_decoder_trains_writes_and_is_scored(folder):
    """The task, to write a line's words in capitals, is one that copying cannot do."""
    lines = sorted({line for f in (folder / "corpus").iterdir() for line in f.open()})
    (folder / "sources").write_text("".join(lines))
    (folder / "targets").write_text("".join(lines).upper())
    overrides = {
        "data.source": "parallel", "data.path": folder / "sources", "data.seq_len": 64,
        "data.target_path": folder / "targets", "data.source_len": 32, "steps": 30,
        "eval_every": 15, "prompt": "def", "data.name": "",
    }  # fmt: skip
    workdir = folder / "pairs"
    run(
        "train", *flags_of(folder, "translation", **overrides), f"--workdir={workdir}",
        "--devices=2", "--config.parallel.strategy=shard_map",
    )  # fmt: skip
    found = losses(workdir)
    assert found[30] < found[1]
    flags = [f"--workdir={workdir}", "--beam=2"]
    written = run("generate", *flags, "--prompt=def return")
    assert "def return" not in written.stdout  # the target alone
    long = run("generate", *flags, f"--prompt={'def ' * 99}", check=False)
    assert long.returncode == 2 and "the model reads at most 31" in long.stderr

    run("score", *flags, "--num=9", "--length_penalty=1.0")
    outputs = [json.loads(line) for line in (workdir / "outputs.jsonl").open()]
    assert len(outputs) == 9
    assert all(pair["reference"] == pair["source"].upper() for pair in outputs)
    result = json.loads((workdir / "score.json").read_text())["scores"]
    assert set(result) == {"model", "copy of the source", "commonest target"}
    assert all(0 <= value <= 100 for each in result.values() for value in each.values())
    assert result["copy of the source"]["bleu"] < 1


BAD = {  # overrides of configs/lstm.py -> what the message must say
    "model.num_heads=2": "model.num_heads is of the transformer, seq2seq family",
    "model.cel=gru": "the nearest is 'model.cell'",
    "model.cell=gated": "choose one of rnn, lstm, gru",
    "model.width=wide": "config.model.width is 'wide'; expected a value of type int",
    "data.source=gettext data.path= data.source_len=9": "learns from documents",
    "data.source_len=9": "source_len is 9, but it has no effect where data.source",
    "prompt=" + "def_" * 40: "config.prompt: the longest prompt has",
    "parallel.strategy=gpipe parallel.stage=2": "num_layers 1 is not divisible",
    "parallel.strategy=tensor parallel.tensor=2": "set parallel.tensor to 1",
}


BAD_COUNTS = {
    "ngram": {
        "model.order=0": "model.order is 0; it must be at least 1 and at most 5",
        "model.smoothing=good_turing": "choose one of kneser_ney",
        "parallel.strategy=fsdp": "has no meaning for a model of counts",
        "parallel.exchange.codec=int8": "unset parallel.accumulation and parallel.exchange",
        "precision.compute=bfloat16": "a model of counts computes in float32",
    },
    "hmm": {
        "model.num_states=0": "model.num_states is 0",
        "optim.name=adamw": "forgetting is 0.7, but it has no effect where optim.name",
        "model.training=gradient": "do not go together",
        "parallel.strategy=gpipe": "cannot be cut into stages",
    },
}


@pytest.mark.parametrize(
    ("config", "override"), [(c, o) for c, bad in BAD_COUNTS.items() for o in bad]
)
def test_what_counting_cannot_do_is_refused(folder, config, override):
    result = run(
        "train", *flags_of(folder, config), f"--config.{override}",
        f"--workdir={folder}/bad", "--devices=2", check=False,
    )  # fmt: skip
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert BAD_COUNTS[config][override] in result.stderr
    assert not (folder / "bad").exists()


@pytest.mark.parametrize("overrides", BAD)
def test_what_the_family_has_not_is_refused(folder, overrides):
    flags = [f"--config.{override}" for override in overrides.split()]
    result = run(
        "train", *flags_of(folder, "lstm"), *flags, f"--workdir={folder}/bad",
        "--devices=4", check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert BAD[overrides] in result.stderr and "Traceback" not in result.stderr
    assert not (folder / "bad").exists()
