"""Published runs of MaxText on TPU v5e, predicted.

Source: AI-Hypercomputer/maxtext, MaxText/configs/v5e/README.md (MFU of 1 to 32 slices of
256 chips) and 16b.sh to 128b.sh there (rows a chip, rematerialisation, mesh); the sizes of
the models are those of configs/base.yml under `global_parameter_scale`.
"""

from typing import NamedTuple

from jax import ShapeDtypeStruct
from jax import numpy as jnp

from experiments.sweeps.results import Line
from parallel.config import ParallelConfig
from parallel.cost.closed_forms import Cut
from parallel.cost.machine import Hardware, parse
from parallel.cost.plan import Candidate, Model, plan
from parallel.cost.saved import Block, remat_saved
from parallel.cost.step_time import Product, product_flops

VOCAB, SEQ_LEN, CHIPS = 32_000, 2048, 256
SLICES = (1, 2, 4, 8, 16, 32)


class Run(NamedTuple):
    width: int
    heads: int  # each of 128
    hidden: int
    layers: int
    rows: int  # of a chip
    tensor: int  # 1: FSDP over all chips of a slice
    remat: str
    mfu: tuple[float, ...]  # published, by the number of slices


RUNS = {
    "16B": Run(4096, 64, 28672, 32, 6, 1, "full",
               (0.6110, 0.5937, 0.5914, 0.5827, 0.5656, 0.5465)),
    "32B": Run(8192, 64, 28672, 32, 4, 1, "full",
               (0.6686, 0.6481, 0.6410, 0.6367, 0.6226, 0.6040)),
    "64B": Run(8192, 64, 28672, 64, 2, 1, "full",
               (0.5990, 0.5666, 0.5585, 0.5496, 0.5329, 0.5018)),
    # `minimal_offloaded` keeps products in the host's memory: nothing is computed again.
    "128B": Run(8192, 128, 57344, 64, 1, 16, "none",
                (0.5606, 0.5582, 0.5493, 0.5293, 0.5086, 0.4625)),
}  # fmt: skip
# The efficiency of the v5e and its bandwidth between slices (parallel/cost/machine.py) are
# those with the least squared relative error in these four cells.
FITTED = (("16B", 1), ("16B", 2), ("32B", 1), ("64B", 2))


def model_of(run: Run, rows: int) -> Model:
    """Return the Model of a run with so many rows in all."""
    d, a, f, t = run.width, run.heads * 128, run.hidden, SEQ_LEN

    def leaf(*shape: int) -> ShapeDtypeStruct:
        return ShapeDtypeStruct(shape, jnp.float32)

    attention = {name: {"kernel": leaf(d, a)} for name in ("query", "key", "value")}
    attention["out"] = {"kernel": leaf(a, d)}
    mlp = {"up": {"kernel": leaf(d, f)}, "gate": {"kernel": leaf(d, f)}}
    mlp["down"] = {"kernel": leaf(f, d)}
    layer = {"attention": attention, "mlp": mlp}
    params = {"embedding": leaf(VOCAB, d), "output": {"kernel": leaf(d, VOCAB)}}
    params["layers"] = {i: layer for i in range(run.layers)}
    outer, inner = 8.0 * VOCAB * d, 4.0 * run.layers * (4 * d * a + 3 * d * f)
    block = Block(d, run.heads, run.heads, f, t, gated=True, kernel="splash")

    def product(inputs: int, outputs: int) -> Product:
        flops = 2.0 * t * inputs * outputs
        smallest = min(inputs, outputs)
        return Product(flops, smallest, t * (inputs + outputs), inputs * outputs)

    scores = Product(2.0 * t * t * a, 128, 2.0 * t * a, 0.0, times=2)
    return Model(
        params, {"mu": params, "nu": params},
        tensor_dims=(
            ("(query|key|value)/kernel$", -1, run.heads, "heads"),
            ("out/kernel$", -2, run.heads, "heads"),
            ("(up|gate)/kernel$", -1, f, "hidden"),
            ("down/kernel$", -2, f, "hidden"),
        ),
        cut=Cut(
            run.layers, outer, inner, 4.0 * rows * t * d,
            ((True, False), (False, True)), 0.5,
        ),
        rows=rows, seq_len=t, compute="bfloat16",
        saved={remat: remat_saved(block, 2, remat) for remat in ("none", "full")},
        carry=2.0 * d, wide=f, gated=True, vocab_size=VOCAB, loss_chunk=t,
        layer=[*[product(d, a)] * 4, *[product(d, f)] * 3, scores],
        outer=[product(d, VOCAB)],
    )  # fmt: skip


def predicted(name: str, slices: int) -> tuple[Candidate, float]:
    """Return the candidate of a run's own mesh, and its MFU."""
    run = RUNS[name]
    hardware: Hardware = parse(f"{slices}*tpu-v5e:16x16" if slices > 1 else "tpu-v5e:16x16")
    model = model_of(run, run.rows * CHIPS * slices)
    strategy = "hybrid" if run.tensor > 1 else "hsdp" if slices > 1 else "fsdp"
    found = plan(model, hardware, ParallelConfig(), [strategy], accumulation=1)
    wanted = {"tensor": run.tensor, "fsdp": CHIPS // run.tensor, "data": slices}
    if strategy == "fsdp":
        wanted = {"data": CHIPS}
    one = next(
        each
        for each in found
        if each.remat == run.remat
        and all(wanted.get(axis, 1) == n for axis, n in each.degrees.items())
    )
    flops = 3 * (product_flops(model.layer) * run.layers + product_flops(model.outer))
    rate = flops * model.rows / one.seconds / hardware.num_devices
    return one, rate / 197e12


def lines() -> list[Line]:
    """Return a line for each published cell."""
    found = []
    for name, run in RUNS.items():
        for slices, published in zip(SLICES, run.mfu, strict=True):
            one, mfu = predicted(name, slices)
            found.append(
                {
                    "part": "maxtext", "model": name, "slices": slices,
                    "published": published, "predicted": round(mfu, 4),
                    "fitted": (name, slices) in FITTED, "bound": one.bound,
                }
            )  # fmt: skip
    return found
