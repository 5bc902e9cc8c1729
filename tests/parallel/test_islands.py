"""Replicas that are islands of devices: the laws of local strategies, one level up."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import fields
from experiments.run.checkpoint import Checkpoints
from experiments.run.steps import compile_for
from parallel.config import ParallelConfig
from parallel.cost.ledger import collectives, ledger
from parallel.exchange.config import ExchangeConfig
from parallel.layout import bytes_per_device
from parallel.local import LocalConfig
from parallel.readings import read
from tests.parallel.test_local import poisoned, same_sums
from tests.parallel.toy import (
    BATCH,
    assert_equal,
    batches,
    oracle,
    toy_learner,
    toy_program,
    train,
    weighted_batches,
)

STEPS, STOP, EVERY = 5, 3, 2  # stops between two meetings
RATE = 0.3
SGD = optax.sgd(RATE)
MOMENTUM = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(RATE, momentum=0.9))


# Its state is the loss that it was told last.
TOLD = optax.GradientTransformationExtraArgs(
    lambda params: jnp.float32(0),
    lambda updates, state, params=None, *, value, **extra: (updates, value),
)


def config_of(strategy: str, inner: str, local, exchange, **degrees) -> ParallelConfig:
    local = LocalConfig(
        inner=inner, **{"every": EVERY, "fragments": 2, "overlap": 1} | local
    )
    return ParallelConfig(
        strategy, local=local, exchange=exchange, **{"slice": 2} | degrees
    )


def islands(strategy, inner, learner, local=None, exchange=None, **degrees):
    config = config_of(
        strategy, inner, local or {}, exchange or ExchangeConfig(), **degrees
    )
    return toy_program(**vars(config), learner=learner)


@pytest.mark.parametrize(
    "inner, degrees",
    [("shard_map", {}), ("fsdp", {}), ("tensor", {"data": 2, "tensor": 2})],
)
def test_meeting_after_every_sgd_step_is_synchronous(inner, degrees):
    program = islands("local_sgd", inner, toy_learner(SGD), {"every": 1}, **degrees)
    _, params, losses = train(program, STEPS, weighted_batches)
    expected, expected_losses = oracle(SGD, STEPS, weighted_batches)
    assert_equal(params, expected)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)


@functools.cache
def compressed(inner: str, **degrees):
    """Return DiLoCo's program in 4 bits; its step is compiled."""
    exchange = ExchangeConfig(codec="int4")
    learner = toy_learner(optax.chain(TOLD, MOMENTUM))
    program = islands("diloco", inner, learner, exchange=exchange, **degrees)
    return program._replace(step=compile_for(program, program.place(batches(1)[0])))


def saved_after(program, num_steps: int):
    return jax.device_get(program.portable(train(program, num_steps)[0]))


def test_islands_are_replicas_with_the_same_rows():
    learner = toy_learner(MOMENTUM)._replace(num_steps=STEPS)  # they meet at the end
    streaming = [
        islands("streaming_diloco", inner, learner, {"alone": 1}, **degrees)
        for inner, degrees in (("shard_map", {}), ("none", {"data": 1}))
    ]
    own, expected = (saved_after(program, STEPS) for program in streaming)
    assert_equal(own, expected, rtol=2e-4)  # all that is saved, under the same names
    apart = own.comm[0]["embedding"]
    assert apart.shape[0] == 2 and not np.allclose(apart[0], apart[1])


def test_islands_send_the_same_codes_as_replicas():
    """A value halfway between two codes is sent as one or the other: up to rounding."""
    programs = compressed("shard_map"), compressed("none", data=1)
    own, expected = (saved_after(program, EVERY) for program in programs)
    for fragment, other in zip(
        own.comm[2].fragments, expected.comm[2].fragments, strict=True
    ):
        residual, other_residual = fragment.comm["residual"], other.comm["residual"]
        for a, b in zip(*map(jax.tree.leaves, (residual, other_residual)), strict=True):
            assert np.abs(b).max() > 0
            differing = np.abs(a - b) > 1e-6
            assert differing.mean() < 2e-3


@pytest.mark.parametrize("inner", ["shard_map", "fsdp"])
def test_meetings_cross_slices_and_nothing_else_does(inner):
    """By int4: half a byte and a share of the scales, there and back, for 2 islands."""
    program = compressed(inner)
    (own, island), (meeting, mesh) = program.step.programs
    inside, across = ledger(own.as_text(), island), ledger(meeting.as_text(), mesh)
    assert {entry.axes for entry in inside} == {("data",)}
    assert {entry.axes for entry in across} == {("slice",)}
    assert {entry.count for entry in collectives(meeting.as_text(), mesh)} == {1 / EVERY}
    # fsdp leaves small leaves whole; each device sends its part of the others.
    sizes = [x.size for x in jax.tree.leaves(program.abstract.params[0])]
    parts = 1 if inner == "shard_map" else 4
    held = sum(size if size < 1024 else size / parts for size in sizes)
    sent = sum(entry.sent_bytes for entry in across)
    assert sent == pytest.approx(held * (1 / 2 + 4 / 64) / EVERY, rel=0.02)
    config = config_of("diloco", inner, {}, ExchangeConfig(codec="int4"))
    shapes = program.abstract_portable.params
    told = config.row.sent_bytes(config, shapes, program.mesh, None)
    told -= config.inner.row.sent_bytes(config.inner, shapes, island, None)
    assert sent == pytest.approx(told, rel=0.02)


def test_a_device_keeps_its_own_part_of_what_was_agreed():
    program = compressed("fsdp")
    agreed = program.abstract.comm.fragments[0].agreed
    whole = sum(4 * x.size for x in jax.tree.leaves(agreed))
    assert bytes_per_device(agreed) < whole / 3
    # Where each device has all parameters, the first of the island meets.
    kept = compressed("shard_map").abstract.comm.fragments[0].agreed
    devices = {d.id for x in jax.tree.leaves(kept) for d in x.sharding.device_set}
    assert devices == {0, 4} and bytes_per_device(kept) == whole


def take(program, state, start: int, stop: int):
    for batch in batches(STEPS)[start:stop]:
        state, _ = program.step(state, program.place(batch))
    return state


@pytest.mark.parametrize("inner", ["shard_map", "fsdp"])
def test_islands_follow_one_loss(inner):
    """The schedule is told that of all islands' tokens since the last meeting."""
    program = compressed(inner)
    state, losses, told = program.init(jax.random.key(1)), [], []
    for batch in batches(STEPS):
        state, metrics = program.step(state, program.place(batch))
        losses.append([float(metrics[name].sum()) for name in ("loss", "tokens")])
        told.append([float(jax.tree.leaves(opt)[0]) for opt in state.opt])
    for one, other in told:
        assert one == other
    for meeting in (2, 4):
        loss, tokens = np.sum(losses[meeting - EVERY : meeting], 0)
        np.testing.assert_allclose(told[meeting][0], loss / tokens, rtol=1e-5)


def saved_and_restored(folder, before, state, after):
    with Checkpoints(folder, 1, write=True) as checkpoints:
        checkpoints.save(STOP, before, state, None)
        checkpoints.wait()
        return checkpoints.restore(after)


def assert_goes_on(folder, program):
    state = take(program, program.init(jax.random.key(1)), 0, STOP)
    restored = saved_and_restored(folder, program, state, program)
    assert jax.tree.structure(restored) == jax.tree.structure(program.abstract)
    a, b = (jax.device_get(take(program, s, STOP, STEPS)) for s in (state, restored))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_goes_on_to_the_bit(tmp_path):
    assert_goes_on(tmp_path, compressed("fsdp"))


def test_post_local_sgd_is_synchronous_at_first(tmp_path):
    """With momentum and clipping too. It is saved before and after the islands part."""
    local, learner = {"every": 4, "first": STOP}, toy_learner(MOMENTUM)
    program = islands("post_local_sgd", "fsdp", learner, local)
    program = program._replace(step=compile_for(program, program.place(batches(1)[0])))
    state = take(program, program.init(jax.random.key(1)), 0, STOP - 1)
    restored = saved_and_restored(tmp_path, program, state, program)
    state, restored = (take(program, s, STOP - 1, STOP) for s in (state, restored))
    assert_equal(jax.device_get(program.params(state)), oracle(MOMENTUM, STOP)[0])
    state = take(program, state, STOP, STEPS)
    back = program.adopt(program.portable(take(program, restored, STOP, STEPS)))
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((back, state)))
    own = jax.device_get(program.portable(state).comm[0]["embedding"])
    assert own.shape[0] == 2 and not np.array_equal(own[0], own[1])


def test_a_pipeline_inside_is_synchronous_and_taken_back():
    """Its state has another form than what is saved."""
    learner = toy_learner(SGD, num_layers=2)
    degrees = {"data": 1, "stage": 2, "accumulation": 2}
    program = islands("local_sgd", "gpipe", learner, {"every": 1}, **degrees)
    state, params, _ = train(program, 2)
    assert_equal(params, oracle(SGD, 2, num_layers=2)[0])
    back = program.adopt(program.portable(state))
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((back, state)))


@pytest.mark.parametrize("inner", ["shard_map", "fsdp"])
def test_another_number_of_islands_keeps_the_outer_state(tmp_path, capsys, inner):
    before = compressed(inner)
    state = take(before, before.init(jax.random.key(1)), 0, STOP)
    saved = jax.device_get(before.portable(state))
    exchange = ExchangeConfig(codec="int4")
    local = {"every": 1}
    learner = toy_learner(optax.chain(TOLD, MOMENTUM))
    after = islands("diloco", inner, learner, local, exchange, slice=4)
    begun = saved_and_restored(tmp_path, before, state, after)
    again = jax.device_get(after.portable(begun))
    assert again.comm[0]["embedding"].shape[0] == 4
    assert_equal(again.params, saved.params, rtol=1e-6)
    if inner == "fsdp":
        assert "it is not taken over" in capsys.readouterr().err
        return  # its parts have other sizes
    assert "its sums stay" in capsys.readouterr().err
    (old,), (new,) = saved.comm[2].fragments, again.comm[2].fragments
    assert_equal((new.agreed, new.outer), (old.agreed, old.outer), rtol=0)
    same_sums(new.comm, old.comm)
    same_sums(again.comm[2].tally.tokens, saved.comm[2].tally.tokens)
    assert max(np.abs(x).max() for x in jax.tree.leaves(new.outer)) > 0


def test_an_island_that_is_never_finite_is_named_and_does_not_count():
    learner = poisoned(2)  # of 4 parts of the rows: the first half of the second island
    program = islands("diloco", "shard_map", learner)
    state, told = program.init(jax.random.key(1)), {}
    for step, batch in enumerate(batches(4), 1):
        state, metrics = program.step(state, program.place(batch))
        assert metrics["finite"].shape == metrics["loss"].shape == (2,)
        reading = read(metrics)
        assert reading.skipping == [1] and np.isfinite(reading.values["loss"])
        told[step] = reading.told
    assert told == {1: {}, 2: {1: (2, 2)}, 3: {}, 4: {1: (2, 4)}}
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(program.params(state)))


@pytest.mark.parametrize(
    "strategy, local, degrees, words",
    [
        (
            "diloco",
            {"inner": "pmap"},
            {},
            "inner is 'pmap'.*choose one of none, jit, shard",
        ),
        ("diloco", {"inner": "diloco"}, {}, "inner is 'diloco', which cannot"),
        ("diloco", {"inner": "fdsp"}, {}, "inner is 'fdsp'"),
        ("diloco", {"inner": "fsdp"}, {"slice": 3}, "slice 3.* 8 cpu devices"),
        ("diloco", {"inner": "fsdp"}, {"slice": 1}, "slice 1 .* 8 devices"),
        ("diloco", {"inner": "tensor"}, {"slice": 8}, "slice 8 .* 8 devices, 1 for each"),
        (
            "diloco",
            {"inner": "fsdp"},
            {"tensor": 2},
            "tensor is 2.*inner=fsdp has no axis tensor",
        ),
        ("jit", {"inner": "fsdp"}, {"slice": 1}, "inner is 'fsdp'.*no effect"),
        ("diloco", {"inner": "1f1b"}, {"stage": 3, "data": 1}, "stage 3.*8 cpu devices"),
    ],
)
def test_islands_that_cannot_be_are_refused(strategy, local, degrees, words):
    with pytest.raises(ValueError, match=words):
        config = ParallelConfig(
            strategy, local=LocalConfig(**local), **{"slice": 2} | degrees
        )
        fields.check(config, "parallel.")
        config.validate(BATCH, config.mesh())
