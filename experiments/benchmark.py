"""What the framework costs: a step of Lockstep against the same mathematics in bare JAX.

python -m experiments.benchmark --config=configs/tiny.py --devices=1 --rounds=7

Both run in this process on the same batches and the same initial parameters, in turns; the
figure is the median over rounds of the ratio of their times. Their losses are compared too,
so that what is timed is the same work.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs.base import Experiment
from experiments import startup
from experiments.build import build, check
from lm.data.pipeline import prepare, train_batches

CONFIG = startup.define_config()
ROUNDS = flags.DEFINE_integer("rounds", 7, "How often both take turns.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps_per_round", 10, "Steps of each turn.", lower_bound=1)


class Bare(NamedTuple):
    params: dict
    opt: optax.OptState


def bare_loss(params: dict, batch: dict, num_heads: int) -> jax.Array:
    """Return the mean loss of a Llama-shaped transformer, written out in one place."""
    tokens, segments = batch["tokens"][:, :-1], batch["segments"][:, :-1]
    index = jnp.arange(tokens.shape[1])
    first = segments != jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
    positions = index - jax.lax.cummax(jnp.where(first, index, 0), axis=1)
    mask = (segments[:, :, None] == segments[:, None, :])[:, None]

    def norm(x, w):
        return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * w["scale"]

    def heads(x):
        return x.reshape(*x.shape[:2], num_heads, -1)

    def rotate(x):
        half = x.shape[-1] // 2
        angle = positions[:, :, None, None] * 10_000.0 ** (-jnp.arange(half) / half)
        a, b = jnp.split(x, 2, -1)
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = params["embedding"][tokens]
    for layer in params["layers"].values():
        attention, mlp = layer["attention"], layer["mlp"]
        h = norm(x, layer["attention_norm"])
        q, k, v = (heads(h @ attention[n]["kernel"]) for n in ("query", "key", "value"))
        y = jax.nn.dot_product_attention(rotate(q), rotate(k), v, mask=mask, is_causal=True)
        x = x + y.reshape(x.shape) @ attention["out"]["kernel"]
        h = norm(x, layer["mlp_norm"])
        gated = jax.nn.silu(h @ mlp["gate"]["kernel"]) * (h @ mlp["up"]["kernel"])
        x = x + gated @ mlp["down"]["kernel"]
    logits = norm(x, params["final_norm"]) @ params["embedding"].T
    labels, next_segments = batch["tokens"][:, 1:], batch["segments"][:, 1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    counts = (next_segments == segments) & (next_segments > 0)
    return jnp.sum(losses * counts) / jnp.sum(counts)


def bare_step(config: Experiment, mesh: Mesh) -> tuple[Callable, Callable]:
    """Return (init, step) of the plain program: jit, shardings, optax, nothing else."""
    c = config.optim
    warmup = max(c.warmup_steps, 1)
    rate = optax.join_schedules(
        [
            optax.linear_schedule(c.learning_rate / warmup, c.learning_rate, warmup - 1),
            optax.cosine_decay_schedule(
                c.learning_rate, config.steps - warmup, c.final_fraction
            ),
        ],
        [warmup],
    )
    tx = optax.chain(
        optax.clip_by_global_norm(c.clip_norm),
        optax.adamw(
            rate, c.b1, c.b2, c.eps, weight_decay=c.weight_decay,
            mask=lambda params: jax.tree.map(lambda x: x.ndim >= 2, params),
        ),
    )  # fmt: skip
    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))

    @partial(
        jax.jit, in_shardings=(whole, rows), out_shardings=(whole, whole), donate_argnums=0
    )
    def step(state: Bare, batch: dict) -> tuple[Bare, jax.Array]:
        loss = partial(bare_loss, num_heads=config.model.num_heads)
        value, grads = jax.value_and_grad(loss)(state.params, batch)
        updates, opt = tx.update(grads, state.opt, state.params)
        return Bare(optax.apply_updates(state.params, updates), opt), value

    return jax.jit(lambda params: Bare(params, tx.init(params)), out_shardings=whole), step


def timed(step: Callable, state, batches: list) -> tuple[object, float, list]:
    results = []
    start = time.perf_counter()
    for batch in batches:
        state, result = step(state, batch)
        results.append(result)
    jax.block_until_ready((state, results))
    return state, (time.perf_counter() - start) / len(batches), results


def main() -> None:
    with startup.user_errors():
        config = startup.load_config(CONFIG)
        m, o = config.model, config.optim
        shape = (m.norm, m.activation, m.positions, m.bias, m.tied, o.name, o.schedule)
        llama = ("rmsnorm", "swiglu", "rotary", False, True, "adamw", "cosine")
        if shape != llama or m.num_kv_heads or m.dropout:
            raise ValueError(f"the bare program is written for {llama}, not {shape}")
        startup.start_jax()
        mesh = check(config)
        data = prepare(config.data)
    _, program = build(config, data.tokenizer.get_vocab_size(), mesh)
    host = list(
        train_batches(data.train, config.seed, config.data.batch_size, 0, STEPS.value)
    )
    ours = program.init(jax.random.key(config.seed))
    init, step = bare_step(config, mesh)
    bare = init(jax.tree.map(jnp.copy, program.params(ours)))
    batches = [program.place(batch) for batch in host]
    rows = NamedSharding(mesh, P("data"))
    bare_batches = [
        {k: v for k, v in jax.device_put(b, rows).items() if k != "row"} for b in host
    ]
    ours, _, metrics = timed(program.step, ours, batches)  # compiles
    bare, _, values = timed(step, bare, bare_batches)
    worst = max(
        abs(float(m["loss"] / m["tokens"]) / float(v) - 1)
        for m, v in zip(metrics, values, strict=True)
    )
    print(f"largest relative difference of the losses: {worst:.1e}")
    ratios = []
    for index in range(ROUNDS.value):
        ours, a, _ = timed(program.step, ours, batches)
        bare, b, _ = timed(step, bare, bare_batches)
        ratios.append(a / b)
        print(
            f"round {index + 1}: Lockstep {a * 1e3:.2f} ms, bare JAX {b * 1e3:.2f} ms, "
            f"ratio {a / b:.3f}",
            flush=True,
        )
    print(
        f"{config.parallel.strategy} over {mesh.size}: median ratio "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    startup.run(main)
