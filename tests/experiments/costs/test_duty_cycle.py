"""Duty cycles of made-up traces, whose busy time is counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from experiments.costs.duty_cycle import duty_cycle, traced_duty_cycle


def trace(planes: dict[str, dict[str, list[tuple[int, int]]]]) -> ProfileData:
    """Make a trace of {plane: {line: [(from, to), ...]}}, in ns."""
    text = ""
    for plane, lines in planes.items():
        text += (
            f'planes {{ name: "{plane}"\n event_metadata {{ key: 1 value {{ id: 1 }} }}\n'
        )
        for line, spans in lines.items():
            text += f' lines {{ name: "{line}" timestamp_ns: 1000\n'
            for start, end in spans:
                text += f"  events {{ metadata_id: 1 offset_ps: {start * 1000}"
                text += f" duration_ps: {(end - start) * 1000} }}\n"
            text += " }\n"
        text += "}\n"
    return ProfileData.from_serialized_xspace(
        ProfileData.text_proto_to_serialized_xspace(text)
    )


def test_tpus():
    first = {
        "Steps": [(0, 100)],
        "XLA Modules": [(0, 100)],
        "XLA Ops": [(0, 30), (60, 100)],
    }
    second = {"XLA Ops": [(10, 40)], "Async XLA Ops": [(40, 90)]}
    host = {"python": [(0, 500)], "XLA Ops": [(0, 500)]}
    planes = {"/device:TPU:0": first, "/device:TPU:1": second, "/host:CPU": host}
    assert duty_cycle(trace(planes)) == pytest.approx((0.7 + 0.3) / 2)


def test_streams_that_overlap_count_once():
    streams = {
        "Stream #7(Compute)": [(0, 40), (70, 80), (10, 20)],
        "Stream #20(MemcpyD2D)": [(30, 60), (75, 100)],
        "Launch Stats": [(0, 100)],
    }
    assert duty_cycle(trace({"/device:GPU:0": streams})) == pytest.approx(0.9)


def test_a_device_that_ran_nothing_was_idle():
    planes = {"/device:GPU:0": {"Stream #1(Compute)": [(0, 10)]}, "/device:GPU:1": {}}
    assert duty_cycle(trace(planes)) == pytest.approx(0.5)


def test_a_cpu_has_none():
    assert traced_duty_cycle(lambda: jax.jit(jnp.sin)(1.0)) is None
