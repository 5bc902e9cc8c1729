"""Each mistake ends at start-up with exit code 2 and a line that helps, no traceback."""

import errno
import json
import os
import shutil
import subprocess

import pytest

from tests.experiments.runs import ROOT, command, run, run_anew, small, write_corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    write_corpus(folder / "corpus")
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "short.txt").write_bytes(b"a few words\n")
    (folder / "other").mkdir()
    (folder / "other" / "notes").write_text("not a run")
    return folder


OVERRIDES = {  # one --config override -> what the message must say
    "optim.learning_rat=1": "no field 'optim.learning_rat'; the nearest is 'optim.lea",
    "learning_rate=1": "the nearest is 'optim.learning_rate'",
    "model.layers.deep=1": "no field 'model.layers.deep'",
    "steps=many": "config.steps is 'many'; expected a value of type int",
    "optim.learning_rate=fast": "is 'fast'; expected a value of type float",
    "model.tied=perhaps": "is 'perhaps'; expected a value of type bool",
    "data.batch_size=30": "batch_size 30 is not divisible by data degree 8",
    "parallel.accumulation=3": "x accumulation 3 = 24",
    "parallel.data=16": "multiply to 16, but there are 8 cpu devices",
    "parallel.strategy=zero4": "choose one of jit, pmap, shard_map, zero1, zero1_whole",
    "model.num_heads=3": "num_heads 3 does not divide model.width 32",
    "model.num_kv_heads=3": "num_kv_heads 3 does not divide",
    "model.activation=silu": "choose one of relu, gelu, tanh, sigmoid, swiglu",
    "model.loss_chunk=5": "loss_chunk 5 does not divide data.seq_len 32",
    "model.attention=cudnn": "attention=cudnn takes no float32 with head width",
    "optim.name=adamm": "choose one of sgd, momentum",
    "optim.schedule=cos": "choose one of constant, step",
    "precision.compute=int8": "choose one of float32, bfloat16, float16",
    "data.source=web": "choose one of stdlib, tfds, text, jsonl",
    "data.tokenizer=unigram": "choose one of bpe, byte, character, word",
    "data.tokenizer=byte": "vocab_size is 300; for data.tokenizer 'byte' it must be 257",
    "on_nonfinite=cry": "choose one of skip, stop",
    "steps=0": "steps is 0",
    "data.path={folder}/none.txt": "none.txt' matches no file",
    "data.path={folder}/empty.txt": "empty.txt is empty",
    "data.path={folder}/latin.txt": "latin.txt is not UTF-8: byte 3 is 0xe9",
    "data.path={folder}/short.txt": "no document of validation is left: clean drops 1",
    "data.path=": "data.path is empty",
}


def assert_refused(result: subprocess.CompletedProcess, words: str) -> None:
    assert result.returncode == 2, result.stderr[-2000:]
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    errors = result.stderr[result.stderr.index("error: ") :].strip()
    assert len(errors.splitlines()) <= 2


@pytest.mark.parametrize("override", OVERRIDES)
def test_overrides(folder, override):
    result = run(
        "train", *small(folder), f"--config.{override.format(folder=folder)}",
        f"--workdir={folder}/new", "--devices=8", check=False,
    )  # fmt: skip
    assert_refused(result, OVERRIDES[override])
    assert not (folder / "new").exists()


UNTRACED = [  # config, strategy -> the message
    ("tiny", "diloco", "trace_norms is set, but strategy 'diloco' has no step in which"),
    ("tiny", "1f1b", "choose one of jit, pmap, shard_map, zero1, zero1_whole, zero2, fsdp"),
    ("hmm", "jit", "a HmmConfig has no stack of layers to trace"),
    ("ngram", "jit", "choose one of TransformerConfig, RecurrentConfig, or unset it"),
    ("translation", "jit", "a Seq2SeqConfig has no stack of layers to trace"),
]


@pytest.mark.parametrize("config, strategy, words", UNTRACED)
def test_norms_are_not_traced_where_there_are_none(config, strategy, words, tmp_path):
    flags = [f"--config={ROOT}/configs/{config}.py", "--config.trace_norms", "--devices=1"]
    flags += [f"--config.parallel.strategy={strategy}", f"--workdir={tmp_path}/new"]
    assert_refused(run("train", *flags, check=False), words)
    assert not (tmp_path / "new").exists()


FLAGS = [
    (["train", "--devices=8"], "no --config given"),
    (
        ["train", "--config=configs/none.py", "--workdir=x"],
        "configs/none.py: there is no such file",
    ),
    (["train", "--config=configs/tiny.py"], "no --workdir given"),
    (["train", "--config=", "--workdir=x"], "no --config given"),
    (["train", "--workdir=x", "--config"], "no --config given"),
    (["train", "--config=configs/sweeps/degree.py", "--workdir=x"], "no get_config()"),
    (["train", "--config=configs/tiny.py", "--workdir=x", "--stop_at=-1"], "stop_at=-1"),
    (["train", "--config=configs/tiny.py", "--wrkdir=x"], "wrkdir"),
    (["train", "--config=configs/tiny.py", "workdir=x"], "'workdir=x' is not a flag"),
    (["evaluate", "--workdir=/nowhere/at/all"], "/nowhere/at/all holds no run"),
    (["generate", "--workdir=/nowhere/at/all"], "give either --prompt or --prompts_file"),
    (["generate", "--workdir=/nowhere", "--prompt=a", "--top_p=2"], "top_p is 2.0"),
]


@pytest.mark.parametrize("flags, words", FLAGS, ids=lambda value: str(value)[:40])
def test_flags(flags, words):
    assert_refused(run(*flags, check=False), words)


def test_mistakes_of_a_command_started_anew(folder):
    """The others are forked: this one goes through the start of the interpreter too."""
    override = "parallel.data=16"
    flags = [*small(folder), f"--config.{override}", f"--workdir={folder}/new"]
    result = run_anew("train", *flags, "--devices=8", check=False)
    assert_refused(result, OVERRIDES[override])
    assert_refused(run_anew("evaluate", "--workdir=/nowhere", check=False), "holds no run")


ALIEN = ["unshare", "--user", "--map-user=12345"]  # a user id that has no name
CAN_UNSHARE = shutil.which("unshare") and not subprocess.run([*ALIEN, "true"]).returncode


@pytest.mark.skipif(not CAN_UNSHARE, reason="needs Linux's user namespaces")
def test_a_user_without_name_home_and_letters_beyond_ascii(tmp_path):
    write_corpus(tmp_path / "größe")
    (tmp_path / "größe" / "0.txt").write_text("größe = 日本\n" * 40, encoding="utf-8")
    bare = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    absent = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "JAX_COMPILATION_CACHE_DIR")
    environ = {name: x for name, x in os.environ.items() if name not in absent} | bare
    overrides = {"data.path": tmp_path / "größe", "prompt": "größe", "steps": 1}
    flags = [*small(tmp_path, **overrides), "--devices=1", f"--workdir={tmp_path}/lauf ü"]
    result = subprocess.run(
        [*ALIEN, *command("train", *flags)], cwd=ROOT, env=environ, capture_output=True
    )
    assert result.returncode == 0, result.stderr.decode()
    assert "größe" in result.stdout.decode() and b"Traceback" not in result.stderr
    config = json.loads((tmp_path / "lauf ü" / "config.json").read_text())
    assert config["prompt"] == "größe"


def test_a_cache_that_cannot_be_written_is_named(folder):
    flags = [*small(folder), "--devices=1", f"--workdir={folder}/new"]
    for cache in ("/proc/none", folder / "latin.txt"):
        result = run("train", *flags, f"--config.data.cache={cache}", check=False)
        assert_refused(result, f"the prepared data cannot be kept in {cache}/rows")
        assert "--config.data.cache" in result.stderr
    assert not (folder / "new").exists()


@pytest.fixture(scope="module")
def mine(folder):
    """The flags of a run that is there, in a workdir where one was killed before it."""
    flags = [*small(folder, steps=2), "--devices=2", f"--workdir={folder}/mine"]
    # A run that was killed at its very start left these, and may start again.
    (folder / "mine").mkdir()
    (folder / "mine" / "lock").touch()
    (folder / "mine" / "config.partial").write_text("{")
    run("train", *flags)
    return flags


def test_a_vocabulary_smaller_than_asked_for_is_seen_before_the_claim(folder):
    flags = small(folder, **{
        "data.vocab_size": 600, "data.tokenizer": "word",
        "parallel.strategy": "tensor", "parallel.tensor": 2,
    })  # fmt: skip
    result = run(
        "train", *flags, f"--workdir={folder}/learnt/new", "--devices=2", check=False
    )
    assert_refused(result, "where data.vocab_size allows 600: the vocabulary size 283")
    assert not (folder / "learnt").exists()


def test_workdirs(folder, mine):
    other = run("train", *mine, f"--workdir={folder}/other", check=False)
    assert_refused(other, "so it is not a run's")
    changed = run(
        "train", *mine, "--config.optim.learning_rate=0.5", "--config.seed=3", check=False
    )
    assert_refused(changed, "optim.learning_rate is 0.003 there and 0.5 here")
    assert "seed is 0 there and 3 here" in changed.stderr
    for flag, words in [
        ("--checkpoint=7", "give best, latest or one of 2"),
        ("--max_new_tokens=99", "more than the context of 32"),
        ("--max_new_tokens=0", "must be at least 1"),
        ("--prompt=a\udcff", "the prompt 'a\\udcff' is not UTF-8"),
    ]:
        wrong = run(
            "generate", f"--workdir={folder}/mine", "--prompt=def", flag, check=False
        )
        assert_refused(wrong, words)


def test_a_workdir_in_use(folder, mine):
    import filelock

    with filelock.FileLock(folder / "mine" / "lock"):
        second = run("train", *mine, check=False)
    assert_refused(second, "is in use by another run")


def test_nonfinite_names_the_step_and_rows_and_may_end_the_run(folder):
    overrides = {"optim.learning_rate": 1e30, "optim.clip_norm": 0.0, "optim.name": "sgd"}
    overrides |= {"optim.warmup_steps": 0, "steps": 6, "eval_every": 0}
    skipping = run(
        "train", *small(folder, **overrides), f"--workdir={folder}/skips", "--devices=2"
    )
    assert "the update was skipped on every device. Rows of this step: [" in skipping.stderr
    summary = json.loads((folder / "skips" / "summary.json").read_text())
    records = [json.loads(x) for x in (folder / "skips" / "metrics.jsonl").open()]
    skipped = [r["step"] for r in records if r["split"] == "train" and r["skipped"]]
    assert len(skipped) == summary["skipped_steps"] >= 3
    stopping = run(
        "train", *small(folder, **overrides, on_nonfinite="stop"),
        f"--workdir={folder}/stops", "--devices=2", check=False,
    )  # fmt: skip
    assert_refused(stopping, f"step {skipped[0]}: the loss or a gradient is not finite")
    giving_up = run(
        "train", *small(folder, **overrides, max_skipped=2),
        f"--workdir={folder}/gives-up", "--devices=2", check=False,
    )  # fmt: skip
    first, second = skipped[:2]
    assert_refused(giving_up, f"step {second}: the loss or a gradient is not finite (the l")
    assert "skipped step 2 in a row, and max_skipped ends the run at 2" in giving_up.stderr
    assert f"the rows of step {first}, the first" in giving_up.stderr
    assert "Infinity" not in (folder / "skips" / "summary.json").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_ends_the_run_and_keeps_what_was_saved(folder):
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
    try:
        flags = [*small(folder, save_every=1, keep=100), f"--workdir={disk}/run"]
        full = run("train", *flags, "--devices=2", check=False)
        assert "No space left" in full.stderr or "could not be written" in full.stderr
        assert full.returncode == 2
        assert "make room, and the same command goes on from there" in full.stderr
        assert "Traceback" not in full.stderr
        subprocess.run(["mount", "-o", "remount,size=300m", disk], check=True)
        resumed = run("train", *flags, "--devices=2")
        assert "going on from the checkpoint at step" in resumed.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_full_disk_when_checkpoints_close_does_not_hide_the_error(tmp_path, monkeypatch):
    from experiments.run.checkpoint import Checkpoints

    def close():
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(OSError, match="make room"),
        Checkpoints(tmp_path, 1, write=True) as checkpoints,
    ):
        monkeypatch.setattr(checkpoints.checkpointer, "close", close)
        raise OSError("make room")
