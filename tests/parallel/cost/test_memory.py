"""The memory of a plan: published vectors, our own residuals, states as programs have them.

Figures of 2205.05198 (Korthikanti et al. 2022) as Calculon, calculon/llm/validation.py,
gives them, in GiB of a device.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from lm.models.setting import Setting
from lm.models.transformer.config import TransformerConfig
from lm.optim import OptimConfig, optimizer
from lm.precision import PrecisionConfig, mixed_precision
from parallel.config import ParallelConfig
from parallel.cost.memory import held_bytes, layers_in_flight, state_bytes
from parallel.cost.saved import (
    Block,
    activation_bytes,
    megatron_saved,
    remat_saved,
)
from parallel.layout import bytes_per_device
from tests.parallel.toy import toy_learner, toy_program

GIB = 1 << 30
SEQ_LEN = 2048
# rows, D, L, N, tensor, stages, schedule, chunks; activations whole, then with sequence
# parallelism and selective recomputation; parameters and optimizer.
MEGATRON = {
    "22B": ((4, 6144, 48, 64, 8, 1, "1f1b", 1), 59.25, 9.5625, 45.5625),
    "175B": (
        (1, 12288, 96, 96, 8, 8, "interleaved", 3),
        66.84375,
        12.3515625,
        45.5625,
    ),
    "530B": (
        (1, 20480, 105, 128, 8, 35, "interleaved", 3),
        114.0234375,
        23.076171875,
        31.640625,
    ),
    "1T": ((1, 25600, 128, 160, 8, 64, "1f1b", 1), 131.25, 26.5625, 32.958984375),
}


@pytest.mark.parametrize("name", MEGATRON)
def test_megatrons_memory_to_the_last_digit(name):
    sizes, whole, selective, state = MEGATRON[name]
    rows, width, layers, heads, tensor, stages, schedule, chunks = sizes
    held = layers_in_flight(schedule, layers, stages, 10 * stages, chunks)
    for expected, policies in ((whole, (False, False)), (selective, (True, True))):
        saved = megatron_saved(width, heads, SEQ_LEN, *policies)
        found = activation_bytes(saved, rows * SEQ_LEN, held, tensor)
        assert math.isclose(found / GIB, expected, rel_tol=1e-15)
    # 16-bit weights, and in float32 gradients, weights and two moments: 18 bytes.
    shapes = [(3, 1), (1, 1), (4, 1), (1, 4)]
    kinds = (jnp.bfloat16, *[jnp.float32] * 4)
    tree = [
        jax.ShapeDtypeStruct((layers, a * width, b * width), dtype)
        for a, b in shapes
        for dtype in kinds
    ]
    specs = [P("stage", "tensor")] * len(tree)
    found = held_bytes(tree, specs, {"stage": stages, "tensor": tensor})
    assert found / GIB == state


BLOCKS = {
    "gpt": {"activation": "gelu"},
    "llama": {
        "activation": "swiglu",
        "norm": "rmsnorm",
        "positions": "rotary",
        "num_kv_heads": 2,
        "bias": False,
    },
}


def residual_bytes(config: TransformerConfig, setting: Setting, compute: str) -> float:
    """Return the bytes of a token that autodiff saves of a layer, but not the weights."""
    task = mixed_precision(config.task(setting), PrecisionConfig(compute=compute))
    params = jax.eval_shape(task.init, jax.random.key(0))
    _, embed, layer, _ = task.stages
    tokens = jax.ShapeDtypeStruct((1, setting.seq_len + 1), jnp.int32)
    batch = {"tokens": tokens, "segments": tokens}
    batch["row"] = jax.ShapeDtypeStruct((1,), jnp.int32)
    outer = {name: x for name, x in params.items() if name != "layers"}
    carry = jax.eval_shape(lambda p, b: embed(p, b, None), outer, batch)
    key = jax.random.key(0) if config.dropout else None

    def saved(params, x, batch, index):
        return jax.vjp(lambda p, x: layer(p, x, batch, index, key), params, x)[1]

    index = jax.ShapeDtypeStruct((), jnp.int32)
    kept = jax.eval_shape(saved, params["layers"][0], carry, batch, index)
    weights = {x.shape for x in jax.tree.leaves(params["layers"][0])}
    weights |= {(1, 1, config.width)}
    # Positions, segments and the blocks of a mask are the same in all layers.
    shared = (jnp.int32, jnp.int8)
    return sum(
        x.size * x.dtype.itemsize / setting.seq_len
        for x in jax.tree.leaves(kept)
        if x.shape not in weights and x.dtype not in shared and x.size >= setting.seq_len
    )


@pytest.mark.parametrize("kernel", ["splash", "blockwise", "xla"])
@pytest.mark.parametrize("name", BLOCKS)
def test_our_blocks_keep_what_the_list_says(name, kernel):
    cases = [("float32", "none", 0.0), ("bfloat16", "none", 0.1)]
    if kernel == "splash":  # the policies keep no array of a kernel
        cases += [("bfloat16", "full", 0.0), ("bfloat16", "dots", 0.1)]
    for compute, remat, dropout in cases:
        config = TransformerConfig(
            width=64, num_heads=4, num_layers=1, attention=kernel, remat=remat,
            dropout=dropout, **BLOCKS[name],
        )  # fmt: skip
        setting = Setting(32, 128, compute=jnp.dtype(compute), packed=False)
        block = Block(
            64, 4, config.num_kv_heads or 4, config.hidden_width, 128,
            gated=name == "llama", kernel=kernel, dropout=dropout > 0,
            rotary=name == "llama",
        )  # fmt: skip
        saved = remat_saved(block, jnp.dtype(compute).itemsize, remat)
        expected = sum(x.bytes for x in saved if x.traced)
        assert residual_bytes(config, setting, compute) == expected, (compute, remat)


class Shapes(NamedTuple):
    """What `state_bytes` reads of a Model."""

    params: Any
    opt: Any
    tensor_dims: tuple
    num_layers: int


def test_the_state_is_what_programs_hold():
    learner = toy_learner(optimizer(OptimConfig(), 10), num_layers=4)
    for strategy, degrees in {
        "shard_map": {},
        "zero1": {},
        "fsdp": {},
        "hybrid": {"data": 2, "fsdp": 2, "tensor": 2},
        "1f1b": {"data": 4, "stage": 2, "accumulation": 2},
        "diloco": {},
    }.items():
        config = ParallelConfig(strategy=strategy, **degrees)
        program = toy_program(strategy, learner, **degrees)
        state = program.abstract
        params = jax.eval_shape(learner.task.init, jax.random.key(0))
        opt = jax.eval_shape(learner.optimizer.init, params)
        model = Shapes(params, opt, learner.task.tensor_dims, 4)
        found = state_bytes(model, config, program.mesh)
        assert found["parameters"] == bytes_per_device(state.params), strategy
        # Counters, of which a stack has one a layer.
        assert abs(found["optimizer"] - bytes_per_device(state.opt)) <= 64, strategy
        assert abs(found["exchange"] - bytes_per_device(state.comm)) <= 64, strategy
