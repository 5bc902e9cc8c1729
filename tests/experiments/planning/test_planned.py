"""The planner beside the compiler of TPUs, and what the command writes and refuses."""

import dataclasses
import json
import statistics

import jax
import pytest
from jax.sharding import AbstractMesh

from experiments.planning.compiled import lacking
from experiments.planning.hardware import check_topology, hardware_of, write_machine
from experiments.planning.regime import regime, text_tokens
from experiments.planning.search import kept_degrees, planned, strategies_of
from experiments.planning.shapes import model_of
from experiments.run.build import model_flops
from experiments.run.startup import read_config_file
from experiments.sweeps.results import read
from lm.data.sources.stdlib import source_files, stdlib_folder
from parallel.cost.machine import parse
from parallel.cost.memory import state_bytes, temporary_bytes
from parallel.cost.step_time import product_flops
from tests.experiments.runs import run
from tests.test_structure import ROOT

SPLASH = 17  # the lines before are of an attention that kept more
HERE = {  # what experiments.calibrate would have written
    "platform": "cpu",
    "devices": 2,
    "flops": {"float32": [[0, 1e9], [512, 5e10]]},
    "memory": 4e9,
    "memory_bandwidth": 1e10,
    "collectives": {"all-reduce": {"bandwidth": 5e8, "latency": 1e-4}},
    "overlaps": False,
}
ONE_AXIS = ("jit", "shard_map", "zero1", "zero2", "fsdp")


def test_memory_is_near_what_the_compiler_of_tpus_says():
    """The cells of one axis that were compiled with the code as it is."""
    errors, models = [], {}
    for line in read(ROOT / "results/tpu.jsonl")[SPLASH:]:
        if "error" in line or line["member"] not in ONE_AXIS:
            continue
        if line["topology"] != "tpu-v5e:2x4":  # a v5p's compiler sums where we scatter
            continue
        config = read_config_file(f"configs/{line['model']}.py")
        if line["model"] not in models:
            models[line["model"]] = model_of(config, "tpu")
        model, strategy = models[line["model"]], line["member"]
        own = dataclasses.replace(config.parallel, strategy=strategy)
        mesh = AbstractMesh((8,), ("data",))
        held = state_bytes(model, own, mesh)
        assert abs(sum(held.values()) - line["state_bytes"]) <= 64  # counters
        expected = own.row.sent_bytes(own, model.params, mesh, model.cut)
        if strategy != "jit":  # whose collectives the compiler chooses
            assert abs(expected / line["sent_bytes"] - 1) < 0.02
        used = temporary_bytes(model, own, mesh, config.model.remat)
        errors.append(abs(sum(used.values()) / line["temporary_bytes"] - 1))
    errors.sort()
    assert len(errors) >= 10 and statistics.median(errors) < 0.05
    # One was not met as well: lm1b under shard_map, by 19 %.
    assert errors[int(0.9 * (len(errors) - 1))] < 0.15 and errors[-1] < 0.2


def test_products_are_the_models_flops():
    for name in ("tiny", "lstm"):
        config = read_config_file(f"configs/{name}.py")
        model = model_of(config, "cpu")
        found = product_flops(model.layer) * model.num_layers + product_flops(model.outer)
        expected = model_flops(config, config.data.vocab_size) * config.data.seq_len
        assert 3 * found == expected, name


@pytest.fixture(scope="module")
def tiny():
    config = read_config_file("configs/tiny.py")
    return config, model_of(config, "cpu")


def test_what_cannot_be_planned_is_one_line(tiny, tmp_path):
    config, model = tiny
    names = strategies_of(None, config)
    assert {"pmap", "diloco", "zero1_whole"}.isdisjoint(names)
    for only, said in {
        ("zero9",): "--only=zero9: there is no such strategy; choose among jit, pmap",
        (): "--only=: there is no such strategy",
        ("parameter_server",): "--only=parameter_server: its workers have no step",
    }.items():
        with pytest.raises(ValueError, match=said):
            strategies_of(list(only), config)
    with pytest.raises(ValueError, match="--fit keeps the strategy of the config, jit"):
        strategies_of(["fsdp"], config, keep=True)
    with pytest.raises(ValueError, match="tpu-v5e:2x4 compiles for other .*tpu-v5e:4x8"):
        check_topology("tpu-v5e:2x4", parse("tpu-v5e:4x8"))
    here = parse(
        f"this:{jax.device_count()}", parse("h100:8").machine._replace(name="this")
    )
    assert not lacking(here)
    assert "for the plan is for h100:8, and 8 cpu devices are here" in lacking(
        parse("h100:8")
    )
    with pytest.raises(ValueError, match="data.batch_size 32 rows .* the 64 devices"):
        planned(model, parse("h100:8x8"), config, ["fsdp"])
    with pytest.raises(ValueError, match="parallel.fsdp 3 do not multiply to the 8"):
        odd = dataclasses.replace(config.parallel, strategy="hsdp", data=2, fsdp=3)
        found = planned(model, parse("h100:8"), config, ["hsdp"])
        kept_degrees(found, dataclasses.replace(config, parallel=odd), parse("h100:8"))
    with pytest.raises(ValueError, match="experiments.calibrate --out=.*absent.json"):
        hardware_of(f"{tmp_path}/absent.json")
    link = {"bandwidth": 5e8, "latency": -1}
    for changed, said in {
        "memory_bandwidth": (0, "memory_bandwidth is 0, expected a number above 0"),
        "memory": ("4 GB", "memory is '4 GB', expected a number above 0"),
        "flops": ({}, "lacks 'float32'"),
        "collectives": ({"all-reduce": link}, "latency of all-reduce is -1, .* from 0"),
        "platform": ("fpga", "platform is 'fpga', expected cpu or gpu or tpu"),
        "devices": (0, "expected NAME:SIZES"),
    }.items():
        write_machine(tmp_path / "bad.json", HERE | {changed: said[0]})
        with pytest.raises(ValueError, match=said[1]):
            hardware_of(f"{tmp_path}/bad.json")
    write_machine(tmp_path / "bad.json", HERE | {"collectives": {}})
    assert hardware_of(f"{tmp_path}/bad.json:1").num_devices == 1
    with pytest.raises(ValueError, match="measured on one device, .* plan is for 2"):
        hardware_of(f"{tmp_path}/bad.json")
    counting = read_config_file("configs/ngram.py")
    with pytest.raises(ValueError, match="no gradients to plan for"):
        model_of(counting, "cpu")


def test_the_regime_follows_the_text_and_the_memory(tiny):
    _, model = tiny
    count = 1_067_000  # parameters
    v5e = parse("tpu-v5e:2x4")
    small = [regime(model, v5e, 4 * count, times * 4 * count) for times in (7, 9)]
    assert [each.name for each in small] == ["small", "small"]
    assert not small[0].flags and "--config.data.augment.rate=0.05" in small[1].flags
    assert regime(model, v5e, 6 * count, 6 * count).name == "medium"
    little = v5e._replace(machine=v5e.machine._replace(memory=20e6))
    assert regime(model, little, 6 * count, 6 * count).name == "large"


def test_the_tokens_of_the_text_are_those_of_training(tmp_path):
    config = read_config_file("configs/tiny.py")
    tests = sum(x.stat().st_size for x in (stdlib_folder() / "test").rglob("*.py"))
    every = sum((stdlib_folder() / name).stat().st_size for name in source_files())
    assert 0.5 * (every - tests) < 4 * text_tokens(config) < 0.95 * (every - tests)
    (tmp_path / "a.txt").write_text("a" * 400)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    config.data.source, config.data.path = "text", str(tmp_path)
    assert text_tokens(config) == 100
    assert text_tokens(read_config_file("configs/mixture.py")) is None


def test_fit_takes_the_largest_microbatch_and_the_least_rematerialisation(tiny):
    config, model = tiny
    own = dataclasses.replace(config.parallel, strategy="fsdp")
    config = dataclasses.replace(config, parallel=own)
    roomy = parse("tpu-v5e:2x4")
    found = kept_degrees(planned(model, roomy, config, ["fsdp"]), config, roomy)
    assert (found[0].accumulation, found[0].remat) == (1, "none")
    for remat in ("dots", "full"):
        least = found[0].memory_bytes - 1
        tight = roomy._replace(machine=roomy.machine._replace(memory=least))
        found = kept_degrees(planned(model, tight, config, ["fsdp"]), config, tight)
        assert (found[0].accumulation, found[0].remat) == (1, remat)


def test_the_command_ranks_explains_and_writes(tmp_path):
    write_machine(tmp_path / "here.json", HERE)
    result = run(
        "plan", "--config=configs/tiny.py", f"--hardware={tmp_path}/here.json",
        f"--out={tmp_path}/plan", "--critical_batch=8192", "--top=3",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Memory of a device, by part" in result.stdout and " logits |" in result.stdout
    assert "The best: --config.parallel.strategy=" in result.stdout
    assert "Regime small: 2." in result.stdout and "device-hours" in result.stdout
    found = json.loads((tmp_path / "plan/plan.json").read_text(encoding="utf-8"))
    seconds = [one["seconds"] for one in found["candidates"] if one["fits"]]
    assert seconds == sorted(seconds) and len(seconds) > 10
    for one in found["candidates"]:
        assert sum(one["memory"].values()) == pytest.approx(one["memory_bytes"])
        parts = {name: x for name, x in one["time"].items() if name != "hidden"}
        assert sum(parts.values()) == pytest.approx(one["seconds"])
        assert one["data"] * one["fsdp"] * one["tensor"] * one["stage"] == 2
    assert "<img" in (tmp_path / "plan/plan.html").read_text(encoding="utf-8")

    write_machine(tmp_path / "small.json", HERE | {"memory": 1e6})
    small = f"--hardware={tmp_path}/small.json"
    result = run("plan", "--config=configs/tiny.py", small, check=False)
    assert result.returncode == 2
    assert "error: nothing fits on this:2: the nearest is" in result.stderr
