"""The sides of the benchmark that run JAX, each a function that returns its step."""

import tempfile
from collections.abc import Callable
from functools import partial

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs.base import Experiment
from experiments.run.build import build_task
from experiments.run.trial import build_trial
from experiments.studies.benchmark.shapes import (
    LOADER_BATCHES,
    LOADER_ROWS,
    PRODUCT,
    Shape,
)
from lm.data.config import DataConfig
from lm.data.rows.order import Order, train_batches
from lm.data.rows.store import Rows
from lm.models.transformer.config import TransformerConfig
from lm.optim import OptimConfig
from lm.precision import PrecisionConfig
from parallel.config import ParallelConfig
from parallel.mesh import data_mesh


def experiment(shape: Shape, strategy: str, compute: str) -> Experiment:
    return Experiment(
        data=DataConfig(
            seq_len=shape.seq_len, batch_size=shape.batch_size, packing="concat"
        ),
        model=TransformerConfig(
            width=shape.width, num_layers=shape.num_layers, num_heads=shape.num_heads
        ),
        optim=OptimConfig(learning_rate=3e-4, schedule="constant", warmup_steps=0),
        precision=PrecisionConfig(compute=compute),
        parallel=ParallelConfig(strategy=strategy),
    )


def random_tokens(shape: Shape) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(
        0, shape.vocab_size, (shape.batch_size, shape.seq_len + 1), np.int32
    )


def lockstep(shape: Shape, strategy: str, compute: str) -> Callable[[], float]:
    """Return a step of the program that experiments.train runs; it returns the loss."""
    trial = build_trial(
        experiment(shape, strategy, compute), shape.vocab_size, data_mesh(-1)
    )
    state, batch = trial.begin(), trial.place(random_tokens(shape))

    def step() -> float:
        nonlocal state
        state, metrics = trial.step(state, batch)
        return float(metrics["loss"] / metrics["tokens"])

    return step


def bare_loss(params: dict, tokens: jax.Array, num_heads: int) -> jax.Array:
    """Return the mean loss of GPT-2, in plain JAX."""

    def norm(x, w):
        x = x - jnp.mean(x, -1, keepdims=True)
        x *= jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)
        return x * w["scale"] + w["bias"]

    def linear(x, w):
        return x @ w["kernel"] + w["bias"]

    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    x = params["embedding"][inputs] + params["position_embedding"]
    mask = jnp.tril(jnp.ones((inputs.shape[1], inputs.shape[1]), bool))
    for layer in params["layers"].values():
        attention, mlp = layer["attention"], layer["mlp"]
        h = norm(x, layer["attention_norm"])
        q, k, v = (
            linear(h, attention[n]).reshape(*h.shape[:2], num_heads, -1)
            for n in ("query", "key", "value")
        )
        scores = jnp.einsum("btnk,bsnk->bnts", q, k) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), -1)
        y = jnp.einsum("bnts,bsnk->btnk", weights, v).reshape(x.shape)
        x = x + linear(y, attention["out"])
        h = norm(x, layer["mlp_norm"])
        x = x + linear(jax.nn.gelu(linear(h, mlp["up"])), mlp["down"])
    logits = (norm(x, params["final_norm"]) @ params["embedding"].T).astype(jnp.float32)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def bare(shape: Shape, compute: str) -> Callable[[], float]:
    """Return a step of the plain program: jit and optax, from Lockstep's parameters."""
    config = experiment(shape, "jit", compute)
    optim = config.optim
    tx = optax.chain(
        optax.clip_by_global_norm(optim.clip_norm),
        optax.adamw(
            optim.learning_rate, optim.b1, optim.b2, optim.eps,
            weight_decay=optim.weight_decay,
            mask=lambda params: jax.tree.map(lambda x: x.ndim >= 2, params),
        ),
    )  # fmt: skip
    params = jax.jit(build_task(config, shape.vocab_size).init)(jax.random.key(0))
    state = (params, tx.init(params))
    tokens = jnp.asarray(random_tokens(shape))

    @partial(jax.jit, donate_argnums=0)
    def update(state, tokens):
        params, opt = state

        def mean_loss(params):
            rounded = jax.tree.map(lambda x: x.astype(compute), params)
            return bare_loss(rounded, tokens, shape.num_heads)

        loss, grads = jax.value_and_grad(mean_loss)(params)
        updates, opt = tx.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), loss

    def step() -> float:
        nonlocal state
        state, loss = update(state, tokens)
        return float(loss)

    return step


def loader(shape: Shape, workers: int) -> Callable[[], float]:
    """Return a step that loads batches as training does, and nothing else.

    `workers` processes load them; with 0, a thread does.
    """
    folder = tempfile.TemporaryDirectory()
    files = []
    for name in ("tokens", "segments"):
        files.append(
            np.memmap(
                f"{folder.name}/{name}", "uint16", "w+",
                shape=(LOADER_ROWS, shape.seq_len + 1),
            )
        )  # fmt: skip
        files[-1][:] = np.random.default_rng(0).integers(
            0, shape.vocab_size, files[-1].shape, np.uint16
        )
    batches = train_batches(Rows(*files), Order(0, shape.batch_size), 0, 1_000_000)
    if workers:
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(workers))
    iterator = iter(batches)

    def step() -> float:
        for _ in range(LOADER_BATCHES):
            batch = next(iterator)
        return float(batch["tokens"][0, 0])

    step.folder = folder  # the folder exists as long as the step
    return step


def products(shape: Shape, compute: str) -> Callable[[], float]:
    """Return a step that multiplies two large matrices: the machine's own limit."""
    a = jax.random.normal(jax.random.key(0), (PRODUCT, PRODUCT), compute)
    multiply = jax.jit(jnp.matmul)
    return lambda: float(multiply(a, a)[0, 0])
