"""A workdir belongs to one run: what is refused, what is left behind, what goes on."""

import contextlib
import dataclasses
import json
import math

import pytest

from configs.base import Experiment
from experiments.processes import files
from experiments.processes.files import json_line, write_if_possible, write_whole
from experiments.run import startup
from experiments.run.extension import new_end
from experiments.run.log import Log
from experiments.run.restore import run_data
from experiments.run.summary import FIGURES, read_summary
from experiments.run.workdir import (
    claimed,
    read_config,
    read_tokenizer,
    write_description,
)
from lm.compress.config import CompressConfig
from lm.compress.low_rank import LowRankConfig
from lm.data.config import DataConfig
from lm.data.prepare import prepare, rows_folder
from lm.data.rows.sampling import SamplingConfig
from lm.data.sources.config import SourceConfig
from lm.models.ngram.model import NgramConfig
from lm.optim import OptimConfig
from tests.experiments.runs import write_corpus


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config whose paths are relative, in the folder that they are relative to."""
    write_corpus(tmp_path / "corpus", 4)
    monkeypatch.chdir(tmp_path)
    data = DataConfig(
        source="text", path="corpus", cache="cache", vocab_size=260, seq_len=16
    )
    return Experiment(data=data, steps=12, optim=OptimConfig(schedule="cosine"))


def changed(config, **fields):
    data = {name: fields.pop(name) for name in list(fields) if hasattr(config.data, name)}
    new = dataclasses.replace(config.data, **data)
    return dataclasses.replace(config, data=new, **fields)


def start(workdir, config, step: int | None = None):
    """Claim the workdir as a run does that ends after a step, if it gets that far."""
    with claimed(workdir, config, prepare(config.data), write=True):
        if step is not None:
            (workdir / "checkpoints" / str(step)).mkdir(parents=True)
            record = {"split": "train", "step": step, "skipped": 0}
            (workdir / "metrics.jsonl").write_text(json_line(record))


def write_summary(workdir, steps: int):
    figures = dict.fromkeys(FIGURES, 1.0) | {"steps": steps}
    (workdir / "summary.json").write_text(json.dumps(figures))


def contents(folder):
    return {
        file.relative_to(folder): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_a_failed_start_leaves_nothing(tmp_path, config):
    data = prepare(config.data)
    (tmp_path / "empty").mkdir()
    for workdir, made in [
        (tmp_path / "new" / "deep", tmp_path / "new"),
        (tmp_path / "empty", tmp_path / "empty" / "config.json"),
    ]:
        with (
            pytest.raises(KeyboardInterrupt),
            claimed(workdir, config, data, write=True),
        ):
            assert (workdir / "config.json").exists()
            (workdir / "tensorboard").mkdir()
            (workdir / "tensorboard" / "events").touch()
            raise KeyboardInterrupt
        assert not made.exists()
    assert list((tmp_path / "empty").iterdir()) == []
    workdir = tmp_path / "begun"
    with contextlib.suppress(KeyboardInterrupt), claimed(workdir, config, data, True):
        (workdir / "metrics.jsonl").write_text(json_line({"split": "train", "step": 1}))
        raise KeyboardInterrupt
    assert {"config.json", "tokenizer.json", "metrics.jsonl"} <= {
        file.name for file in workdir.iterdir()
    }


def test_parameters_that_came_without_training_keep_their_form(tmp_path, config):
    workdir, data = tmp_path / "came", prepare(config.data)
    workdir.mkdir()
    write_description(workdir, config, "")
    factored = changed(config, compress=CompressConfig(low_rank=LowRankConfig("lora")))
    words = "low_rank.kind is 'none' there and 'lora' here.*experiments.compress makes a"
    with pytest.raises(ValueError, match=words):
        with claimed(workdir, factored, data, write=True):
            pytest.fail("factors cannot be read from whole matrices")
    with claimed(workdir, changed(config, steps=7, seed=3), data, write=True):
        assert read_config(workdir).seed == 3


def test_damaged_files_are_named_and_left_as_they_are(tmp_path, config):
    workdir = tmp_path / "run"
    start(workdir, config, step=8)
    write_summary(workdir, 12)
    record = (workdir / "metrics.jsonl").read_text()
    for name, text, remedy in [
        ("config.json", "", "put back a copy"),
        ("config.json", '{"steps": ', "put back a copy"),
        ("config.json", "[]", "put back a copy"),
        ("config.json", "{}", "put back a copy"),
        ("config.json", '{"family": "hmm", "model": 3, "steps": "4"}', "put back a copy"),
        ("summary.json", "", "remove it"),
        ("summary.json", "{}", "remove it"),
        ("tokenizer.json", "", "remove it"),
        ("tokenizer.json", '{"model": 3}', "remove it"),
        ("metrics.jsonl", "", "remove it"),
        ("metrics.jsonl", '{"split": "tra\n' + record, "line 1 is no record"),
        ("metrics.jsonl", record + "3\n" + record, "line 2 is no record"),
        ("metrics.jsonl", record + '{"step": 9}\n', "line 2 is no record"),
    ]:
        whole = (workdir / name).read_bytes()
        (workdir / name).write_text(text)
        before = contents(workdir)
        with pytest.raises(ValueError, match=rf"{name} is .*{remedy}"):
            start(workdir, config)
        assert contents(workdir) == before, name
        (workdir / name).write_bytes(whole)
    (workdir / "tokenizer.json").unlink()
    start(workdir, config)  # as the remedy says
    assert read_tokenizer(workdir).get_vocab_size() == 260


def test_paths_may_move_but_not_the_text(tmp_path, config, monkeypatch):
    workdir = tmp_path / "run"
    start(workdir, config, step=8)
    stored = read_config(workdir).data
    assert stored.path == str(tmp_path / "corpus") and stored.validation_path == ""
    assert stored.cache == str(tmp_path / "cache")
    start(workdir, config)  # the same command, in the same folder
    old = json.loads((workdir / "config.json").read_text())
    old["data"] |= {"path": "corpus", "cache": "cache"}  # as they once were stored
    (workdir / "config.json").write_text(json.dumps(old))
    start(workdir, config)
    assert read_config(workdir).data == stored
    (tmp_path / "corpus").rename(tmp_path / "moved")
    start(workdir, changed(config, path=str(tmp_path / "moved")))
    (tmp_path / "moved" / "0.txt").write_text("another text\n")
    with pytest.raises(ValueError, match="its prepared data is .* so the text"):
        start(workdir, changed(config, path="moved"))
    with pytest.raises(ValueError, match="data.cache is 'gs://a/b', an address"):
        prepare(changed(config, path="moved", cache="gs://a/b").data)
    home = changed(config, path="moved", cache="~/cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    start(tmp_path / "other", home)
    assert read_config(tmp_path / "other").data.cache == "~/cache"


def test_paths_of_a_mixture_may_move_but_not_its_weights(tmp_path, config):
    for name in ("a", "b"):
        write_corpus(tmp_path / name, 4)
    workdir = tmp_path / "run"

    def mixture(b: str, weight: float) -> Experiment:
        sources = (
            SourceConfig("text", path="a", label="a"),
            SourceConfig("text", path=b, label="b", weight=weight),
        )
        sampling = SamplingConfig("key", rates="weights")
        given = {"source": "stdlib", "path": "", "sources": sources, "stages": ""}
        return changed(config, leakage="keep", sampling=sampling, **given)

    start(workdir, mixture("b", 2), step=8)
    stored = read_config(workdir).data.sources
    assert [source.path for source in stored] == [str(tmp_path / x) for x in "ab"]
    (tmp_path / "b").rename(tmp_path / "moved")
    start(workdir, mixture("moved", 2))
    with pytest.raises(ValueError, match=r"sources\[1\].weight is 2 there and 3 here"):
        start(workdir, mixture("moved", 3))


def test_a_run_keeps_its_own_data(tmp_path, config, monkeypatch):
    """The rows and the tokenizer are the ones that were trained on, or it is refused."""
    workdir = tmp_path / "run"
    start(workdir, config)
    made = prepare(config.data)
    fingerprint = made.meta["fingerprint"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    stored = read_config(workdir)

    def is_own():
        data = run_data(workdir, stored)
        assert data.tokenizer.to_str() == made.tokenizer.to_str()
        assert data.validation.tokens.tolist() == made.validation.tokens.tolist()

    cached = rows_folder(stored.data, fingerprint)
    cached.rename(tmp_path / "kept")
    is_own()  # made anew of the same text
    new = tmp_path / "corpus" / "new.txt"
    new.write_text("zqzq xkxk of a new file\n" * 500)
    is_own()  # the cache has it
    cached.rename(tmp_path / "anew")
    found = prepare(stored.data)
    assert found.tokenizer.to_str() != made.tokenizer.to_str()
    with pytest.raises(ValueError) as refused:
        run_data(workdir, stored)
    for words in (fingerprint, found.meta["fingerprint"], str(cached), "put the text back"):
        assert words in str(refused.value)
    new.unlink()
    is_own()
    rows_folder(stored.data, fingerprint).rename(tmp_path / "again")
    (tmp_path / "corpus").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"matches no file; .* was trained on it: put"):
        run_data(workdir, stored)
    (tmp_path / "kept").rename(cached)
    is_own()  # a copy of the prepared data is enough
    (workdir / "tokenizer.json").write_text(found.tokenizer.to_str())
    with pytest.raises(ValueError, match=r"tokenizer.json is not the tokenizer in"):
        run_data(workdir, stored)


def test_other_ends_of_a_run(tmp_path, config):
    workdir, data = tmp_path / "run", prepare(config.data)
    assert new_end(workdir, config, data) == ""
    start(workdir, config, step=8)
    assert new_end(workdir, config, data) == ""
    with pytest.raises(ValueError, match="steps is 7, but .* has taken 8 steps"):
        new_end(workdir, changed(config, steps=7), data)
    with pytest.raises(ValueError, match="belongs to another config: seed is 0 there"):
        new_end(workdir, changed(config, steps=7, seed=1), data)

    def cosine(end):
        share = min(8 / (end - 1), 1)  # of the way from update 1 to the last
        return 1e-3 * (0.9 * (1 + math.cos(math.pi * share)) / 2 + 0.1)

    for steps in (8, 24):
        said = new_end(workdir, changed(config, steps=steps), data)
        assert f"was to end at step 12 and now ends at {steps}" in said
        assert f"jumps from {cosine(12):.3g} to {cosine(steps):.3g} after step 8" in said
    fixed = dataclasses.replace(config.optim, decay_steps=10)
    start(tmp_path / "fixed", changed(config, optim=fixed), step=8)
    said = new_end(tmp_path / "fixed", changed(config, steps=24, optim=fixed), data)
    assert f"the learning rate stays {cosine(10):.3g} after step 8" in said


def test_tables_of_counts_have_no_room_for_more_steps(tmp_path, config):
    workdir, config = tmp_path / "run", changed(config, model=NgramConfig())
    start(workdir, config, step=8)
    with pytest.raises(ValueError, match="have room for what 12 steps count"):
        new_end(workdir, changed(config, steps=24), prepare(config.data))


def test_the_summary_of_a_shorter_run_is_set_apart(tmp_path, config):
    workdir = tmp_path / "run"
    start(workdir, config, step=12)
    write_summary(workdir, 12)
    start(workdir, config)
    assert read_summary(workdir)["steps"] == 12
    start(workdir, changed(config, steps=24))
    assert read_summary(workdir) is None and read_config(workdir).steps == 24
    assert json.loads((workdir / "summary-12.json").read_text())["steps"] == 12


def test_lost_records_are_told(tmp_path, capsys):
    record = {"split": "train", "step": 5, "loss": 2.0, "tokens": 9, "skipped": 0}
    record |= {"tokens_per_second": 1.0}
    for lines, known in ([], 0), ([record], 5), ([record, record | {"step": 8}], None):
        (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
        if lines:
            (tmp_path / "metrics.jsonl").write_text("".join(map(json_line, lines)))
        with Log(tmp_path, 8, 12, 6.0, epochs=float, write=True):
            pass
        said = capsys.readouterr().err
        lost = f"has no records of the steps after {known} up to 8; tokens"
        assert (lost in said) if known is not None else ("no records" not in said)
        # An empty file would be refused as damaged from then on.
        assert (tmp_path / "metrics.jsonl").exists() == bool(lines)


def test_json_has_no_word_for_what_is_not_finite(tmp_path):
    value = {"a": [math.nan, 1.5, {"b": -math.inf}], "c": (math.inf, 2), "d": None}
    found = json.loads(json_line(value), parse_constant=pytest.fail)
    assert found == {"a": [None, 1.5, {"b": None}], "c": [None, 2], "d": None}
    figures = dict.fromkeys(FIGURES, math.inf) | {"steps": 3, "noise_scale": None}
    write_whole(tmp_path / "summary.json", json_line(figures))
    summary = read_summary(tmp_path)
    assert math.isnan(summary["val_loss"]) and summary["noise_scale"] is None


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new(
    tmp_path, monkeypatch, capsys
):
    file = tmp_path / "summary.json"
    write_whole(file, "old")

    def full(partial, text, **_):
        partial.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.pathlib.Path, "write_text", full)
    with pytest.raises(OSError, match="summary.json could not be written: No space left"):
        write_whole(file, "new")
    write_if_possible(file, "new")
    assert "warning: [Errno 28]" in capsys.readouterr().err
    assert [(x.name, x.read_text()) for x in tmp_path.iterdir()] == [(file.name, "old")]


def test_workdirs_of_the_home_and_of_other_machines(tmp_path, monkeypatch):
    class Flag:
        value = "~/runs/a"

    monkeypatch.setenv("HOME", str(tmp_path))
    assert startup.workdir(Flag) == tmp_path / "runs" / "a"
    for address in ("gs://bucket/run", "s3://bucket/run", "file:///tmp/run"):
        Flag.value = address
        with pytest.raises(ValueError, match=f"--workdir={address} is an address"):
            startup.workdir(Flag)
