"""A run that has too little memory says why, and goes on with more microbatches."""

import dataclasses
import json
import subprocess
import sys

import jax
import pytest

from experiments.planning import out_of_memory
from experiments.planning.out_of_memory import explained, next_command, settled, these
from experiments.planning.shapes import model_of
from experiments.processes import allocator
from experiments.run.phases.phase import phases_of
from experiments.run.startup import numbers_for_words, read_config_file
from tests.experiments.runs import ROOT, run, small, write_corpus


def losses(workdir) -> list[float]:
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [line["loss"] for line in found if line.get("split") == "train"]


def test_a_run_without_memory_starts_again_with_the_same_losses(tmp_path):
    write_corpus(tmp_path / "corpus")
    flags = small(tmp_path, steps=4, eval_every=0, save_every=0)
    run("train", *flags, f"--workdir={tmp_path}/plain")
    result = subprocess.run(
        [
            sys.executable, "-m", "tests.experiments.planning.oom_worker", *flags,
            f"--workdir={tmp_path}/short", "--on_oom=accumulate",
        ],
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("out of memory; starting again with") == 1
    assert result.stderr.count("the largest part is") == 1
    expected = losses(tmp_path / "plain")
    assert len(expected) == 4
    assert losses(tmp_path / "short") == pytest.approx(expected, rel=1e-5)
    written = json.loads((tmp_path / "short/config.json").read_text(encoding="utf-8"))
    assert written["parallel"]["accumulation"] == 2


def test_the_message_names_the_largest_part_and_the_flag():
    config = read_config_file("configs/tiny.py")
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 1 GB is too much.\nmore")
    assert out_of_memory.is_out_of_memory(error)
    assert not out_of_memory.is_out_of_memory(ValueError("a shape"))
    said = explained(error, config, config.parallel.mesh(jax.devices()[:2]))
    assert "1 GB is too much. By the plan jit over data 2, 1 microbatches takes" in said
    assert "the largest part is activations" in said and "\n" not in said
    assert "a larger --config.parallel.accumulation" in said
    counts = read_config_file("configs/ngram.py")
    said = explained(error, counts, config.parallel.mesh(jax.devices()[:2]))
    assert said == "out of memory: RESOURCE_EXHAUSTED: 1 GB is too much"


def test_the_next_command_doubles_the_microbatches():
    (phase,) = phases_of(read_config_file("configs/tiny.py"))  # 32 rows
    argv = ["-m", "experiments.train", "--config.parallel.accumulation", "1", "--x=2"]
    flag = "--config.parallel.accumulation=2"
    assert next_command(argv, phase, 8) == ["-m", "experiments.train", "--x=2", flag]
    assert next_command(["--config.parallel.accumulation=1"], phase, 8) == [flag]
    with pytest.raises(ValueError, match="32 over 32 devices cannot be cut into 2"):
        next_command(argv, phase, 32)
    (counting,) = phases_of(read_config_file("configs/ngram.py"))
    with pytest.raises(ValueError, match="a model of counts has one microbatch"):
        next_command(argv, counting, 8)


def test_auto_is_the_fewest_microbatches_that_fit(monkeypatch):
    config = read_config_file("configs/tiny.py")
    flag = "--config.parallel.accumulation"
    argv = ["train", f"{flag}=auto", "-config.parallel.data=2", flag, "auto", "auto"]
    words = numbers_for_words(argv, config)
    assert words == ["train", f"{flag}=0", argv[2], flag, "0", "auto"]
    parallel = dataclasses.replace(config.parallel, accumulation=0, data=2)
    auto = dataclasses.replace(config, parallel=parallel)
    devices = jax.devices()[:2]
    assert settled(auto, devices).parallel.accumulation == 1
    assert settled(config, devices) is config
    hardware, model = these(parallel.mesh(devices)), model_of(config, "cpu")
    monkeypatch.setattr(out_of_memory, "model_of", lambda *given: model)  # once for all

    def little(memory: float) -> int:
        machine = hardware.machine._replace(memory=memory)
        fake = hardware._replace(machine=machine)
        monkeypatch.setattr(out_of_memory, "these", lambda mesh: fake)
        return settled(auto, devices).parallel.accumulation

    found = [little(memory) for memory in (2e9, 1e8, 5e7)]
    assert found == sorted(found) and found[0] < found[-1] <= 16
    with pytest.raises(ValueError, match="accumulation=auto: nothing fits on this:2"):
        little(1e6)
    # The workers of a server have no step in common, but each has the memory of one.
    served = dataclasses.replace(parallel, strategy="parameter_server")
    auto = dataclasses.replace(config, parallel=served)
    assert little(2e9) == 1


def test_the_allocator_is_told(monkeypatch):
    environ = {}
    assert "75%" in allocator.told("gpu", environ)
    monkeypatch.setattr(allocator.os, "environ", environ)
    allocator.preallocate(0.5)
    assert "50%" in allocator.told("gpu", environ)
    allocator.preallocate(0.0)
    assert allocator.told("gpu", environ) == "BFC, as needed"
    assert allocator.told("cpu") in ("mimalloc", "system")
