"""Plans: bytes are the closed forms, links are those of the hardware, nothing too large."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from parallel.config import Having, ParallelConfig
from parallel.cost.closed_forms import Cut, crossings
from parallel.cost.machine import GIB, MACHINES, Link, axis_links, parse
from parallel.cost.memory import PARTS
from parallel.cost.plan import Model, order, plan
from parallel.cost.saved import Block, remat_saved
from parallel.cost.step_time import (
    Product,
    collective_seconds,
    product_seconds,
    sends,
)
from parallel.cost.traffic import traffic
from parallel.exchange.config import ExchangeConfig
from parallel.pipeline.schedules import build_schedule
from parallel.strategies import STRATEGIES

TIED = (True,), (True,)  # read by the embedding, and by the loss
D, F, V, L, T, ROWS = 1024, 4096, 32_000, 8, 512, 64


def made_up(loss_chunk: int = 128) -> Model:
    """Return a model of matrices in layers, a tied embedding and AdamW."""

    def leaf(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    layer = {"attention": {"query": {"kernel": leaf(D, D)}}, "up": leaf(D, F)}
    params = {"embedding": leaf(V, D), "layers": {i: layer for i in range(L)}}
    inside, outside = 4.0 * L * (D * D + D * F), 4.0 * V * D
    block = Block(D, 16, 16, F, T, gated=False, kernel="splash")
    return Model(
        params=params,
        opt={"mu": params, "nu": params},
        tensor_dims=(("query/kernel", -1, 16, "heads"), ("up$", -1, F, "hidden")),
        cut=Cut(L, outside, inside, 4.0 * ROWS * T * D, TIED, 0.5, ("layers",)),
        rows=ROWS,
        seq_len=T,
        compute="bfloat16",
        saved={remat: remat_saved(block, 2, remat) for remat in ("none", "dots", "full")},
        carry=2.0 * D,
        wide=F,
        gated=False,
        vocab_size=V,
        loss_chunk=loss_chunk,
        layer=[Product(2.0 * T * D * D, D, 2.0 * T * D, D * D)],
        outer=[Product(2.0 * T * D * V, D, T * (D + V), V * D)],
    )


def test_hardware_is_read_and_refused_in_a_line():
    v5e = parse("tpu-v5e:4x8")
    assert (v5e.num_devices, v5e.machine.memory, v5e.name) == (
        32,
        15.75 * GIB,
        "tpu-v5e:4x8",
    )
    assert parse("2*tpu-v5e:16x16").num_devices == 512
    assert parse("h100:8x2").machine.platform == "gpu"
    for text, words in {
        "tpu-v9:2x2": "known are tpu-v5e, tpu-v5p",
        "h100": "expected NAME:SIZES",
        "h100:8xtwo": "expected NAME:SIZES",
        "tpu-v5e:2x2x2": "3 sizes, and tpu-v5e is joined in 2 dims",
        "2*h100:8": "only TPUs have slices",
        "0*tpu-v5e:4x8": "expected NAME:SIZES",
        "two*tpu-v5e:4x8": "expected NAME:SIZES",
    }.items():
        with pytest.raises(ValueError, match=words):
            parse(text)


def test_an_axis_has_the_links_that_it_lies_along():
    line = MACHINES["tpu-v5e"].inner.bandwidth
    # Both dims of a slice without rings; a whole pod has rings, with twice the bandwidth.
    assert axis_links(parse("tpu-v5e:4x8"), {"data": 32})["data"].bandwidth == 2 * line
    assert axis_links(parse("tpu-v5e:16x16"), {"data": 256})["data"].bandwidth == 4 * line
    found = axis_links(parse("tpu-v5e:4x8"), {"data": 4, "tensor": 8})
    assert found["data"].bandwidth == found["tensor"].bandwidth == line
    found = axis_links(parse("2*tpu-v5e:4x8"), {"slice": 2, "data": 32})
    assert found["slice"] == MACHINES["tpu-v5e"].outer
    # Inside a host NVLink, between hosts InfiniBand.
    h100 = MACHINES["h100"]
    found = axis_links(parse("h100:8x2"), {"data": 2, "fsdp": 8})
    assert found == {"fsdp": h100.inner, "data": h100.outer}
    assert axis_links(parse("h100:8x2"), {"data": 16})["data"] == h100.outer


@pytest.mark.parametrize("hardware", ["tpu-v5e:2x4", "h100:8x2"])
def test_a_plan_sends_the_closed_forms_and_ranks_what_fits_first(hardware):
    hardware, model = parse(hardware), made_up()
    names = list(Having(exact=True))
    found = plan(model, hardware, ParallelConfig(), names)
    assert {one.strategy for one in found} == set(names)
    assert sorted(found, key=lambda one: not one.fits) == found
    for fits in (True, False):
        seconds = [float(f"{one.seconds:.6g}") for one in found if one.fits is fits]
        key = seconds if fits else [one.memory_bytes for one in found if not one.fits]
        assert key == sorted(key)
    for one in found:
        config = ParallelConfig(
            strategy=one.strategy, accumulation=one.accumulation, chunks=one.chunks,
            **one.degrees,
        )  # fmt: skip
        mesh = AbstractMesh(tuple(one.degrees.values()), tuple(one.degrees))
        expected = config.row.sent_bytes(config, model.params, mesh, model.cut)
        assert one.sent_bytes == pytest.approx(expected, rel=1e-12), one.strategy
        parts = traffic(config, model.params, mesh, model.cut)
        assert all(set(part.axes) <= set(mesh.shape) for part in parts)
        assert mesh.size == hardware.num_devices and set(one.memory) == set(PARTS)
        assert one.fits == (sum(one.memory.values()) <= hardware.machine.memory)
        assert STRATEGIES[one.strategy].exact and one.seconds > 0


def test_more_microbatches_and_rematerialisation_save_activations():
    found = plan(made_up(), parse("tpu-v5e:2x4"), ParallelConfig(), ["fsdp"])
    assert {one.remat for one in found} == {"none", "dots", "full"}
    by = {(one.accumulation, one.remat): one for one in found}
    for number in (1, 2, 4):
        one, two = by[number, "none"], by[2 * number, "none"]
        assert two.memory["activations"] == one.memory["activations"] / 2
        assert two.memory["logits"] == one.memory["logits"] / 2
        again = by[number, "full"]
        assert again.memory["activations"] < one.memory["activations"] / 10
        assert again.time["compute"] > one.time["compute"]
        products = by[number, "dots"]  # no product of this layer is without weights
        assert products.time["compute"] == one.time["compute"]
        kept = again.memory["activations"], one.memory["activations"]
        assert kept[0] < products.memory["activations"] < kept[1]
    half = plan(made_up(64), parse("tpu-v5e:2x4"), ParallelConfig(), ["fsdp"])
    assert half[0].memory["logits"] * 2 == found[0].memory["logits"]


def test_among_equally_fast_plans_fewer_bytes_then_fewer_microbatches_are_better():
    one = plan(made_up(), parse("tpu-v5e:2x4"), ParallelConfig(), ["fsdp"])[0]
    close = one.time | {"compute": one.time["compute"] * (1 + 1e-12)}
    more = one._replace(sent_bytes=2 * one.sent_bytes, accumulation=1)
    cut = one._replace(time=close, accumulation=8)
    few = one._replace(accumulation=2)
    slow = one._replace(time=one.time | {"compute": 2 * one.time["compute"]}, sent_bytes=0)
    assert sorted([slow, more, cut, few], key=order) == [few, cut, more, slow]


def test_arrays_that_are_not_joined_wait_one_after_the_other():
    """Two arrays of a million numbers are split over four devices, a short one is not."""
    shapes = {"a": (1024, 1024), "b": (1024, 1024), "short": (8,)}
    params = {k: jax.ShapeDtypeStruct(x, jnp.float32) for k, x in shapes.items()}
    mesh, link = AbstractMesh((4,), ("data",)), Link(bandwidth=1e6, latency=1e-3)

    def counted(strategy: str, number: int, joins: bool) -> dict[str, float]:
        config = ParallelConfig(strategy=strategy, accumulation=number)
        parts = traffic(config, params, mesh, None, norms=2, joins=joins)
        for part in parts:  # no bytes; along a tree of four, or a number round a ring
            if part.name == "scalars":
                seconds = part.count * (2 if joins else 6) * 1e-3
                assert collective_seconds(part, link) == pytest.approx(seconds)
                assert part.kind == ("all-reduce" if joins else "collective-permute")
        return {part.name: part.count for part in parts}

    sums = {"scatters": 3, "updated parameters": 1, "gradients": 1}
    assert counted("zero2", 3, True) == sums | {"scalars": 2}  # two norms
    assert counted("zero2", 3, False) == sums | {"scalars": 2 * 2}  # of each split array
    assert counted("jit", 3, True) == {"gradients": 3}  # once in a microbatch
    assert counted("jit", 3, False) == {"gradients": 3 * 3, "scalars": 3 * 2}
    assert counted("shard_map", 3, True) == {"gradients": 1}
    assert counted("shard_map", 3, False) == {"gradients": 1, "metrics": 1}


def test_an_update_reads_and_writes_what_a_device_has_the_state_of():
    """AdamW has two moments: seven passes over the parameters, one of them the gradient."""
    whole = 4.0 * (L * (D * D + D * F) + V * D)
    names, bandwidth = ["jit", "zero1", "fsdp"], MACHINES["h100"].memory_bandwidth
    for devices in (1, 8):
        found = plan(made_up(), parse(f"h100:{devices}"), ParallelConfig(), names, 1)
        for one in found:
            split = 1 if one.strategy == "jit" else devices
            assert one.time["optimizer"] == pytest.approx(7 * whole / split / bandwidth)
        if (
            devices == 1
        ):  # nothing is split: all are as fast, and the plain one was named first
            assert found[0].strategy == "jit"
            assert {one.seconds for one in found if one.remat == "none"} == {
                found[0].seconds
            }


def test_a_hierarchical_sum_sends_little_over_the_slow_links():
    """Two slices of four: 2 b 3/4 inside, and the sum of a quarter, 2 b/4 1/2, across."""
    params = {"w": jax.ShapeDtypeStruct((1000,), jnp.float32)}
    mesh = AbstractMesh((2, 4), ("slice", "data"))

    def parts(codec: str) -> dict[str, tuple]:
        exchange = ExchangeConfig(algorithm="hierarchical", codec=codec)
        config = ParallelConfig(strategy="shard_map", exchange=exchange)
        sent = traffic(config, params, mesh, None)
        expected = config.row.sent_bytes(config, params, mesh, None)
        assert sum(one.sent_bytes for one in sent) == pytest.approx(expected)
        return {one.name: (one.axes, one.sent_bytes, one.sends) for one in sent}

    inside = ("data",), 2 * 4000 * 3 / 4, 6
    across = ("slice",), 2 * 4000 / 4 / 2, 2
    assert parts("none") == {"gradients inside": inside, "gradients": across}
    coded = parts("int8")
    assert coded["gradients inside"] == inside and coded["gradients"][1] < across[1] / 3
    # A codec that adds up what it sends does so inside, too; it leaves a vector whole.
    assert parts("power_sgd") == parts("none")


def test_no_plan_has_an_exchange_that_a_run_would_refuse():
    def numbers(hardware: str, **fields) -> set[int]:
        config = ParallelConfig(exchange=ExchangeConfig(**fields))
        found = plan(made_up(), parse(hardware), config, ["shard_map"])
        return {one.accumulation for one in found}

    assert numbers("tpu-v5e:2x4") == {1, 2, 4, 8}
    assert numbers("tpu-v5e:2x4", every=4) == {4, 8}  # of the microbatches, a multiple
    # A hierarchical sum needs slow and fast links.
    assert numbers("tpu-v5e:2x4", algorithm="hierarchical") == set()
    assert numbers("2*tpu-v5e:2x4", algorithm="hierarchical") == {1, 2, 4}


def test_the_sends_of_a_tree_of_any_size():
    counted = [sends("tree", n) for n in (1, 2, 3, 4, 6, 8)]
    assert counted == [0, 1, 3, 2, 4, 3]
    assert [sends("halving_doubling", n) for n in (2, 3, 8)] == [2, 4, 6]


def test_replicas_that_are_dealt_microbatches_still_exchange():
    hardware = parse("tpu-v5e:2x4")
    even, dealt = (
        plan(made_up(), hardware, ParallelConfig(stragglers=x), ["shard_map"], 1)[0]
        for x in ("ignore", "name")
    )
    assert dealt == even and even.sent_bytes > 0


def test_a_stage_sends_in_every_tick_of_its_schedule():
    for name, chunks in (("gpipe", 1), ("1f1b", 1), ("interleaved", 2)):
        for stages, number in itertools.product((2, 4), (4, 8)):
            schedule = build_schedule(name, stages, number, chunks)
            pairs = stages if chunks > 1 else stages - 1
            sent = 2 * schedule.num_ticks * pairs / stages
            assert crossings(stages, number, chunks) == sent, (name, stages, number)


def test_measured_factors_and_the_overhead_are_part_of_the_seconds():
    usual = parse("tpu-v5e:2x4")
    machine = usual.machine._replace(factors={"compute": 3.0}, overhead=0.5)
    found, other = (
        plan(made_up(), hardware, ParallelConfig(), ["shard_map"], 1)[0].time
        for hardware in (usual, usual._replace(machine=machine))
    )
    changed = {"compute": 3 * found["compute"], "overhead": 0.5}
    assert other == found | changed and found["overhead"] == 0


def test_an_optimizer_in_the_hosts_memory_takes_the_place_of_activations():
    usual, hosted = (
        plan(made_up(), parse("tpu-v5e:2x4"), ParallelConfig(offload=x), ["zero1"], 8)[0]
        for x in ("none", "optimizer")
    )
    moments = usual.memory["optimizer"]
    gone = sum(usual.memory[x] for x in ("activations", "logits", "workspace"))
    held = max(0, 2 * moments - gone)
    assert hosted.memory_bytes == usual.memory_bytes - moments + held
    assert hosted.time == usual.time | {"host": 2 * moments / 16e9}


def test_seconds_are_a_roofline_and_alpha_plus_beta():
    machine = MACHINES["h100"]._replace(efficiency=1.0)
    square = Product(2.0 * T * D * D, D, 2.0 * T * D, D * D)
    many = product_seconds([square], 64, 1, machine, "bfloat16")
    assert many == 64 * 2 * T * D * D / 989e12  # bound by FLOPs
    thin = Product(2.0 * D * D, 1, 2.0 * D, D * D)  # a vector: bound by the weights
    assert product_seconds([thin], 1, 1, machine, "bfloat16") == pytest.approx(
        2 * (2 * D + D * D) / 3350e9
    )
    # A ring's all-reduce of b bytes: 2 (n-1) alpha + 2 (n-1)/n b beta.
    mesh, size = AbstractMesh((8,), ("data",)), 4.0 * 1000
    params = {"w": jax.ShapeDtypeStruct((1000,), jnp.float32)}
    (one,) = traffic(ParallelConfig(strategy="shard_map"), params, mesh, None)
    seconds = collective_seconds(one, Link(bandwidth=1e6, latency=1e-3))
    assert seconds == pytest.approx(14 * 1e-3 + 2 * 7 / 8 * size / 1e6)
