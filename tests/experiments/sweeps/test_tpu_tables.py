"""The table of what fits on absent TPUs; tests/experiments/test_tpu.py compiles."""

from experiments.sweeps.tpu_tables import table

CHIP = {"topology": "tpu-v5e:2x4", "jax": "0.10.2", "chip_bytes": 16e9}


def line(model: str, member: str, total: float, sent: float, expected: float) -> dict:
    sizes = {"total_bytes": total, "sent_bytes": sent, "expected_bytes": expected}
    return CHIP | {"model": model, "member": member} | sizes


def test_the_last_line_of_a_cell_counts_and_what_does_not_fit_is_said():
    error = "strategy tensor does not fit: Used 20.1G of 15.75G hbm; try less"
    lines = [
        line("b", "jit", 1e9, 5e6, 1e7),
        line("b", "jit", 8e9, 1.5e9, 1e9),
        line("a", "tensor", 17e9, 2e6, float("nan")),
        CHIP | {"model": "b", "member": "tensor", "error": error},
        CHIP | {"topology": "tpu-v5p:2x2x2", "model": "c", "member": "jit"},
    ]
    found = table(lines, "tpu-v5e:2x4", ["a", "b"], ["jit", "tensor"])
    assert found.splitlines() == [
        "| strategy | a: memory | a: sent a step | b: memory | b: sent a step |",
        "|---|---|---|---|---|",
        "| jit | not compiled |  | 8 GB, 50% | 1.5 GB (+50%) |",
        "| tensor | 17 GB, does not fit | 2 MB | no: Used 20.1G of 15.75G hbm |  |",
    ]
