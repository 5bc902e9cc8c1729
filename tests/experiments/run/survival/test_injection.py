"""What the injector does to checkpoints, rows and memory, without processes that die."""

import errno
import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import fields
from configs.base import Experiment
from configs.tiny import get_config
from experiments.processes.faults import (
    AtSeconds,
    AtStep,
    BadLink,
    CorruptRecord,
    DeadLink,
    FlippedCheckpoint,
    FlippedFrame,
    FlippedGradient,
    FlippedParameter,
    Kill,
    KillWorker,
    Partition,
    ReadOnlyDisk,
    TornCheckpoint,
)
from experiments.processes.network.link import Link
from experiments.run.survival import injection
from experiments.run.survival.injection import (
    Injector,
    Targets,
    gradient_flips,
    keep_setting,
    logged,
    read_faults,
    setting_of,
)
from parallel.mesh import data_mesh
from parallel.program import Learner, TrainState


@pytest.fixture
def killed(monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(injection, "kill", lambda: calls.append("killed"))
    return calls


def injector(folder, plan, index=0):
    rows = [(folder / "train-0.tokens", 3), (folder / "train-1.tokens", 2)]
    for file, num_rows in rows:
        if not file.exists():
            file.write_bytes(bytes(range(12 * num_rows)))
    made = Injector(plan, folder, index, Targets(data_mesh(-1), rows))
    made.begin()
    return made


def saved(folder, *steps):
    for step in steps:
        (folder / f"checkpoints/{step}/params/d").mkdir(parents=True)
        (folder / f"checkpoints/{step}/params/d/a").write_bytes(b"\0" * 40)


def test_checkpoints_are_damaged_once_there_are_two(tmp_path, killed):
    plan = [TornCheckpoint(AtStep(2)), FlippedCheckpoint(AtStep(3), bit=1)]
    ours = injector(tmp_path, plan)
    saved(tmp_path, 8)
    ours.before(9, None)
    assert not killed and not logged(tmp_path)
    saved(tmp_path, 10)
    ours.before(11, None)
    file = tmp_path / "checkpoints/10/params/d/a"
    assert file.read_bytes() == b"\0" * 10 + b"\2" + b"\0" * 9  # torn, then flipped
    assert (tmp_path / "checkpoints/8/params/d/a").stat().st_size == 40
    assert len(killed) == 2
    # A process that goes on from there does not do it again.
    injector(tmp_path, plan).before(12, None)
    assert len(killed) == 2 and [x["number"] for x in logged(tmp_path)] == [0, 1]


def test_a_record_and_a_save_are_hit(tmp_path):
    plan = [
        CorruptRecord(AtStep(1), record=2, bit=3),
        CorruptRecord(AtStep(1), record=4),  # the second row of the second file
        ReadOnlyDisk(AtStep(4)),
    ]
    ours = injector(tmp_path, plan)
    ours.before(1, None)
    for name, row, flip in [("train-0", 2, 8), ("train-1", 1, 1)]:
        file = tmp_path / f"{name}.tokens"
        expected = bytearray(range(file.stat().st_size))
        expected[row * 12 + 6] ^= flip
        assert file.read_bytes() == bytes(expected)
    ours.before_save(3)
    ours.before(4, None)
    with pytest.raises(OSError) as error:
        ours.before_save(4)
    assert error.value.errno == errno.EROFS
    ours.before_save(6)  # the next one works


def test_a_parameter_is_flipped_on_one_device_alone(tmp_path):
    mesh = data_mesh(-1)
    whole = NamedSharding(mesh, P())
    params = {"a": jax.device_put(jnp.arange(6.0), whole),
              "b": jax.device_put(jnp.ones((2, 3), jnp.bfloat16), whole)}  # fmt: skip
    state = TrainState(jnp.int32(0), params, (), (), ())
    fault = FlippedParameter(AtStep(5), device=6, leaf=3, element=10, bit=17)
    after = injector(tmp_path, [fault]).before(5, state)
    for shard in after.params["b"].addressable_shards:  # leaf 3 of 2, element 10 of 6
        bits = np.asarray(shard.data).view(np.uint16).ravel()
        changed = np.flatnonzero(bits != 0x3F80)  # one, in bfloat16
        assert changed.tolist() == ([4] if shard.device.id == 6 else [])
        assert shard.device.id != 6 or bits[4] == 0x3F80 ^ 1 << 1
    np.testing.assert_array_equal(after.params["a"], params["a"])


def test_only_its_target_acts(tmp_path, killed):
    injector(tmp_path, [Kill(AtStep(2), process=1)], index=0).before(2, None)
    assert not killed and not logged(tmp_path)
    injector(tmp_path, [Kill(AtStep(2), process=1)], index=1).before(2, None)
    assert killed
    assert logged(tmp_path) == [{"number": 0, "kind": "kill", "step": 2, "process": 1}]


def test_a_fault_at_an_instant_is_that_of_one_process(tmp_path, killed):
    plan = [Kill(AtSeconds(0.001), process=1)]
    assert not injector(tmp_path, plan, index=0).timers
    (timer,) = injector(tmp_path, plan, index=1).timers
    timer.join(10)
    assert killed and [line["process"] for line in logged(tmp_path)] == [1]


def test_a_gradient_is_flipped_in_its_step_and_once(tmp_path):
    plan = [FlippedGradient(AtStep(4), row=2, leaf=1, element=3, bit=30)]
    (flip,) = gradient_flips(plan, tmp_path, seed=9)
    # The step that takes the state of 3 steps to that of 4.
    learner = SimpleNamespace(seed=9)
    expected = Learner.step_key(learner, jnp.int32(3))
    assert jnp.array_equal(jax.random.key_data(flip.key), jax.random.key_data(expected))
    assert flip[1:] == (2, 1, 3, 30)
    injector(tmp_path, plan).before(4, None)
    assert gradient_flips(plan, tmp_path, seed=9) == []
    data = SimpleNamespace(train=SimpleNamespace(tokens=np.zeros((9, 2))))
    with pytest.raises(ValueError, match="under strategy 'jit' replicas exchange none"):
        read_faults("flipped_gradient", Experiment(), data_mesh(-1), data, tmp_path)


def test_a_fault_that_this_run_cannot_meet_is_refused(tmp_path, monkeypatch):
    data = SimpleNamespace(train=SimpleNamespace(tokens=np.zeros((9, 2))))
    monkeypatch.setattr(injection.jax, "process_count", lambda: 2)
    served = fields.override(get_config(), {"parallel.strategy": "parameter_server"})
    for flag, config, words in [
        ("dead_link", get_config(), "no links that could be changed; start them with"),
        ("kill_worker", get_config(), "strategy 'jit' with parallel.server.pool=here has"),
        ("kill_shard", served, "'parameter_server' with parallel.server.pool=here has"),
        ("flipped_frame", get_config(), "experiments.launch --copies=STEPS"),
        ("flipped_parameter", served, "this process holds no parameters"),
    ]:
        with pytest.raises(ValueError, match=f"--faults={flag}: .*{words}"):
            read_faults(flag, config, data_mesh(-1), data, tmp_path)


def test_a_link_is_worsened_by_the_launcher_and_a_frame_as_it_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(injection.jax, "process_count", lambda: 3)
    asked = []
    monkeypatch.setattr(injection.orders, "worsen", lambda *given: asked.append(given))
    plan = [
        BadLink(AtStep(2), between=(1, 0), one_way=True, link=Link(loss=0.1)),
        Partition(AtStep(2), group=(2,), seconds=4.0),
        FlippedFrame(AtStep(3), bit=9),
        DeadLink(AtSeconds(0.001), between=(1, 2), seconds=0),
    ]
    ours = injector(tmp_path, plan)
    deadline = time.monotonic() + 10
    while not asked:  # the last one, between steps
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ours.before(2, None)
    assert ours.before_frame(b"abc") == b"abc"
    ours.before(3, None)
    assert ours.before_frame(b"abc") == b"a`c" and ours.before_frame(b"abc") == b"abc"
    assert asked == [
        ([(1, 2), (2, 1)], None, 0),
        ([(1, 0)], Link(loss=0.1), 3.0),
        ([(2, 0), (2, 1), (0, 2), (1, 2)], None, 4.0),
    ]
    assert [line["number"] for line in logged(tmp_path)] == [3, 0, 1, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_a_worker_is_killed_by_its_number(tmp_path):
    named = ["bash", "-c", "exec -a 'ray::WorkerProcess x' sleep 60"]
    workers = [subprocess.Popen(named) for _ in range(2)]
    other = subprocess.Popen(["sleep", "60"])
    try:
        deadline = time.monotonic() + 10
        while len(injection.descendants(os.getpid(), injection.SERVER["worker"])) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        injector(tmp_path, [KillWorker(AtStep(2), victim=7)]).before(2, None)
        first, last = sorted(workers, key=lambda worker: worker.pid)
        assert last.wait(10) == -9  # 7 modulo 2
        assert first.poll() is None and other.poll() is None
    finally:
        for process in [*workers, other]:
            process.kill()
            process.wait()


def test_the_flag_names_a_kind_or_a_file(tmp_path):
    data = SimpleNamespace(train=SimpleNamespace(tokens=np.zeros((9, 2))))
    given = Experiment(steps=100), data_mesh(-1), data, tmp_path
    (fault,) = read_faults("kill", *given)
    assert isinstance(fault, Kill) and fault.at.step >= 2
    for seed in range(40):  # it happens, whatever the seed
        short = Experiment(steps=4, seed=seed), *given[1:]
        assert 2 <= read_faults("kill", *short)[0].at.step <= 4
    assert [fault] == read_faults("kill", *given) and read_faults(None, *given) == []
    file = tmp_path / "faults.py"
    file.write_text("def get_faults():\n    return 3\n")
    for flag, words in [
        ("flood", "no kind of fault 'flood'; choose of kill, stop, slow, full_disk"),
        (str(file), "get_faults() returns 3; expected a list"),
        ("no/such.py", "no/such.py: there is no such file"),
    ]:
        with pytest.raises(ValueError, match=re.escape(words)):
            read_faults(flag, *given)
    late = tmp_path / "late.py"
    late.write_text(
        "from experiments.processes.faults import *\n"
        "def get_faults():\n    return [Kill(AtStep(101))]\n"
    )
    with pytest.raises(ValueError, match="step 101 comes after .* which steps 100 sets"):
        read_faults(str(late), *given)


def test_a_run_that_goes_on_with_fewer_devices_meets_the_same_faults(tmp_path):
    """Those of what it has lost do not happen."""
    data = SimpleNamespace(train=SimpleNamespace(tokens=np.zeros((9, 2))))
    file = tmp_path / "faults.py"
    file.write_text(
        "from experiments.processes.faults import *\n"
        "def get_faults():\n"
        "    return [FlippedParameter(AtStep(2), device=7),\n"
        "            Drawn(('kill', 'flipped_parameter'), 20, AtStep(9), 3)]\n"
    )
    config = Experiment()
    before = read_faults(str(file), config, data_mesh(8), data, tmp_path)
    keep_setting(tmp_path, setting_of(config, data_mesh(8), data))
    after = read_faults(str(file), config, data_mesh(2), data, tmp_path)
    assert before == after and len(before) == 21
    ours = Injector(after[:1], tmp_path, 0, Targets(data_mesh(2), []))
    ours.begin()
    ours.before(2, None)
    assert not logged(tmp_path)
