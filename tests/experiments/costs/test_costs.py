"""Costs against closed forms."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.tiny import get_config
from experiments.costs import step
from experiments.costs.step import product_flops
from experiments.run.build import model_flops
from lm.models.transformer.config import TransformerConfig

VOCAB = 300


@pytest.mark.parametrize(
    ("scan_layers", "loss_chunk", "compute"),
    [(False, 0, "float32"), (True, 0, "float32"), (True, 32, "float16")],
)
def test_model_flops_are_those_of_the_papers(scan_layers, loss_chunk, compute):
    """6 N + 12 L T D, N the matrices and the head (Chowdhery et al. 2022, appendix B)."""
    config = get_config()
    config.precision.compute = compute
    width, layers, length = 48, 3, 64
    config.data.seq_len = length
    config.model = TransformerConfig(
        width=width, num_layers=layers, num_heads=4, activation="gelu",
        scan_layers=scan_layers, loss_chunk=loss_chunk,
    )  # fmt: skip
    matrices = 12 * layers * width**2 + VOCAB * width
    expected = 6 * matrices + 12 * layers * length * width
    assert model_flops(config, VOCAB) == pytest.approx(expected)


def test_products_inside_loops_and_branches_count_as_often_as_they_run():
    x = jnp.ones((4, 4))

    def program(x):
        x = jax.lax.scan(lambda c, _: (c @ x, None), x, length=5)[0]
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)

    jaxpr = jax.make_jaxpr(program)(x).jaxpr
    assert product_flops(jaxpr) == 6 * 2 * 4**3


@pytest.mark.parametrize("said, peak", [(60, 67), (95, 84)])
def test_the_peak_of_an_absent_chip_is_the_smaller_of_two_bounds(monkeypatch, said, peak):
    """The sum is 20 + (15 - 13) + 55 + 7; the compiler's peak has no code."""
    monkeypatch.setattr(step, "chip_memory_bytes", lambda device: 100)
    memory = SimpleNamespace(
        argument_size_in_bytes=20, output_size_in_bytes=15, alias_size_in_bytes=13,
        temp_size_in_bytes=55, generated_code_size_in_bytes=7, peak_memory_in_bytes=said,
    )  # fmt: skip
    compiled = SimpleNamespace(memory_analysis=lambda: memory, cost_analysis=lambda: None)
    mesh = SimpleNamespace(devices=np.array([None]))
    found = step.absent_costs(compiled, mesh)
    assert (found["total_bytes"], found["peak_bytes"]) == (84, peak)
