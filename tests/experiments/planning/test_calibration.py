"""The constants of this machine: fitted as made up, and read back as written."""

import numpy as np
import pytest

from experiments.planning import calibration, steps
from experiments.planning.calibration import Sizes, chained, check_request, fit_link
from experiments.planning.hardware import hardware_of, machine_of, write_machine
from experiments.planning.steps import fit_steps


def test_a_link_is_fitted_to_latency_and_bandwidth():
    times = [(size, 14 * 2e-5 + 1.75 * size / 3e8) for size in (4e3, 1e5, 1e6, 3e7)]
    found = fit_link(times, sends=14, share=1.75)
    assert found == pytest.approx({"latency": 2e-5, "bandwidth": 3e8})
    assert fit_link([(1e3, 1e-9), (1e6, 1e-2)], 1, 1)["latency"] == 0


def test_this_machine_is_measured_and_read_back(monkeypatch, tmp_path):
    small = Sizes(widths=(32, 64), rows=4096, copied=1 << 20, repeats=1)
    monkeypatch.setattr(calibration, "CPU", small)
    monkeypatch.setattr(calibration, "SENT", (1 << 10, 1 << 14))
    found = calibration.measure(0.0)
    kinds = {"all-reduce", "all-gather", "reduce-scatter", "collective-permute"}
    assert found["devices"] == 8 and set(found["collectives"]) == kinds
    write_machine(tmp_path / "here.json", found)
    hardware = hardware_of(f"{tmp_path}/here.json:4")
    assert hardware.num_devices == 4 and not hardware.machine.overlaps
    assert hardware.machine.platform == "cpu"
    gpu = machine_of(found | {"platform": "gpu"})  # its kernels are those of a GPU
    assert gpu.platform == "gpu"
    slow, fast = dict(found["flops"]["float32"])[32], hardware.machine.rate("float32", 63)
    assert fast == slow > 0  # a product between two widths has the rate of the smaller
    assert hardware_of(f"{tmp_path}/here.json").num_devices == 8
    for link in found["collectives"].values():
        assert link["bandwidth"] > 0 and link["latency"] >= 0


def test_a_chain_repeats_its_function_inside_one_program():
    x, y = np.full((3, 2), 2.0, np.float32), np.eye(2, dtype=np.float32) * 3
    assert (chained(lambda a, b: a @ b, 4)(x, y) == 162).all()
    assert (chained(lambda a, b: a @ b, 1)(x, y) == 6).all()


def test_what_would_fail_after_a_minute_is_refused_at_once(tmp_path):
    check_request(tmp_path / "hardware.json", 0.5)
    for file, seconds, said in (
        (tmp_path, 0.5, "is a folder; give a file"),
        (tmp_path / "absent/hardware.json", 0.5, "there is no folder .*absent"),
        (tmp_path / "hardware.json", float("nan"), "--seconds=nan: expected a number"),
    ):
        with pytest.raises(ValueError, match=said):
            check_request(file, seconds)


def test_steps_are_fitted_to_factors_of_parts_and_an_overhead():
    parts = np.array(
        [[3.0, 1, 2, 1], [1, 4, 1, 1], [2, 2, 9, 1], [8, 1, 1, 3], [1, 1, 1, 9]]
    )
    rows = np.column_stack([parts, np.ones(len(parts))])
    found = fit_steps(rows, rows @ [1.5, 4.0, 2.0, 0.5, 0.25])
    assert found["overhead"] == pytest.approx(0.25)
    assert list(found["factors"].values()) == pytest.approx([1.5, 4.0, 2.0, 0.5])
    # What would be negative is 0.
    less = fit_steps(rows, rows @ [1.5, 4.0, 2.0, -0.1, 0.25])
    assert less["factors"]["optimizer"] == 0


MACHINE = {
    "platform": "cpu",
    "flops": {"float32": [[0, 1e9]]},
    "memory": 1e9,
    "memory_bandwidth": 1e9,
    "overlaps": False,
    "collectives": {},
}


def test_a_step_lasts_as_long_as_that_of_the_slowest_process(monkeypatch):
    monkeypatch.setattr(steps, "TIMED", steps.TIMED[:1])
    monkeypatch.setattr(steps, "step_seconds", lambda *given: 1.0)

    def found(slowest: float) -> np.ndarray:
        def gather(took: np.ndarray) -> np.ndarray:
            return np.stack([took, slowest * took, took])

        monkeypatch.setattr(steps.multihost_utils, "process_allgather", gather)
        fitted = steps.measure_steps(MACHINE, 0.0)
        return np.array([*fitted["factors"].values(), fitted["overhead"]])

    alone = found(1.0)
    assert alone.sum() > 0
    np.testing.assert_allclose(found(1.5), 1.5 * alone)


def test_steps_of_this_machine_are_timed(monkeypatch):
    monkeypatch.setattr(steps, "TIMED", steps.TIMED[:1])
    found = steps.measure_steps(MACHINE, 0.0)
    assert set(found["factors"]) == set(steps.PARTS)
    assert max(*found["factors"].values(), found["overhead"]) > 0
