"""Law 1 on a GPU or TPU that is here: its one device trains as a CPU does.

`make accelerator` runs this file with both platforms; elsewhere its cases are skipped. A
strategy on one device has every part of its program but the bytes on the wire.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models.attention import attend
from parallel.config import ParallelConfig
from parallel.program import Program
from parallel.strategies import EXACT, build_program
from tests.parallel import test_families
from tests.parallel.toy import (
    SGD,
    STEPS,
    assert_equal,
    batches,
    learner_of,
    oracle_of,
    toy_learner,
    toy_task,
    train,
)

pytestmark = pytest.mark.skipif(
    jax.default_backend() == "cpu", reason="there is no GPU or TPU here"
)


@pytest.fixture(autouse=True, scope="module")
def full_precision():
    """Multiply in float32: by default an accelerator rounds the operands of a product."""
    with jax.default_matmul_precision("highest"):
        yield


def on_accelerator(strategy: str, learner, **config) -> Program:
    config = ParallelConfig(strategy=strategy, **config)
    mesh = config.mesh(jax.devices()[:1])
    return build_program(config, learner, mesh)


def on_cpu(task, batches=batches, num_steps: int = STEPS):
    with jax.default_device(jax.devices("cpu")[0]):
        return oracle_of(task, SGD, num_steps, batches)


@pytest.fixture(scope="module")
def expected():
    return on_cpu(toy_task())


@pytest.mark.parametrize("strategy", EXACT)
def test_every_exact_strategy_trains_as_a_cpu_does(strategy, expected):
    program = on_accelerator(strategy, toy_learner(SGD), accumulation=2)
    _, params, losses = train(program)
    assert_equal(params, expected[0], 5e-5)
    np.testing.assert_allclose(losses, expected[1], 2e-5)


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_sixteen_bits_stay_near_float32(compute, expected):
    program = on_accelerator("shard_map", toy_learner(SGD, compute))
    _, _, losses = train(program)
    np.testing.assert_allclose(losses, expected[1], 1e-2)


@pytest.mark.parametrize("family", list(test_families.FAMILIES))
def test_every_family_trains_as_on_a_cpu(family):
    make, rows = test_families.FAMILIES[family]
    task = make()
    params, losses = on_cpu(task, rows, 2)
    _, found, told = train(on_accelerator("jit", learner_of(task, SGD)), 2, rows)
    assert_equal(found, params, 5e-5)
    np.testing.assert_allclose(told, losses, 2e-5)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_own_kernel_computes_plain_attention(heads):
    """By the kernel of the platform in bfloat16, with segments, against float32."""
    rng = np.random.default_rng(0)
    shapes = [(2, 256, n, 64) for n in (heads[0], heads[1], heads[1], heads[0])]
    q, k, v, dy = (jnp.asarray(rng.standard_normal(s), jnp.bfloat16) for s in shapes)
    segments = jnp.asarray(np.sort(rng.integers(1, 4, (2, 256)), -1), jnp.int32)

    def of(kernel, dtype):
        def attention(*arrays):
            return attend(*(x.astype(dtype) for x in arrays), segments, kernel)

        y, pull = jax.vjp(attention, q, k, v)
        return y, *pull(dy.astype(y.dtype))

    for found, wanted in zip(
        jax.jit(of, static_argnums=(0, 1))("auto", jnp.bfloat16),
        jax.jit(of, static_argnums=(0, 1))("xla", jnp.float32),
        strict=True,
    ):
        found, wanted = (np.asarray(x, np.float32) for x in (found, wanted))
        error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        assert error < 1e-2
