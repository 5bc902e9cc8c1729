"""One member of the study: made, trained and measured."""

import pathlib
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from configs.base import Experiment
from experiments.generation.rate import generation_rate
from experiments.run.build import build, build_task, learner_of, plain_task
from experiments.run.check import check
from experiments.run.compression.make import measured, smaller
from experiments.run.compression.teacher import Teacher, taught_by
from experiments.run.evaluation import Evaluator
from experiments.run.steps import compile_step, row_order
from experiments.studies.compression.members import (
    MEMBERS,
    PLAIN,
    base_config,
    frontier_config,
    way_config,
)
from experiments.sweeps.results import Line
from lm.compress import stored
from lm.compress.config import finished
from lm.compress.distil import DistilConfig
from lm.compress.quantise import QuantiseConfig
from lm.data.prepare import Data, prepare
from lm.data.rows.order import train_batches
from lm.task import Params
from parallel.cost.ledger import step_ledger
from parallel.program import begin

CALIBRATION_BATCHES = 8


def measure(member: str, seed: int, steps: int, folder: pathlib.Path) -> Line:
    """Return a member's loss on all held-out rows, bytes and nonzero parameters."""
    way, config = MEMBERS[member], way_config(MEMBERS[member], seed, steps)
    mesh, data = check(config), prepare(config.data)
    params = None
    if way.after:
        plain = plain_params(seed, steps, folder, data, mesh)
        source = base_config(seed, steps)
        given = way.calibration, CALIBRATION_BATCHES
        params = smaller(source, config, plain, data, mesh, *given)
    if way.steps or not way.after:
        teacher = None
        if way.taught:
            plain = plain_params(seed, steps, folder, data, mesh)
            teacher = teacher_of(plain, seed, steps, data, mesh)
        params = train(config, data, mesh, params, teacher)
    if member == PLAIN:
        folder.mkdir(parents=True, exist_ok=True)
        whole = jax.device_get(params)
        stored.write(plain_file(folder, seed, steps), whole, QuantiseConfig())
    found = measured(config, build_task, params, data, mesh, config.compress.quantise)
    return found | {"hardware": jax.devices()[0].device_kind}


def measure_rate(member: str) -> Line:
    """Return generated tokens a second, which do not depend on what was learnt."""
    config = way_config(MEMBERS[member], 0, 0)
    check(config)
    tokenizer = prepare(config.data).tokenizer
    vocab_size = tokenizer.get_vocab_size()
    params = build_task(config, vocab_size).init(jax.random.key(0))
    given = jax.jit(lambda p: finished(p, config.compress))(params)
    rate = generation_rate(plain_task(config, vocab_size), given, tokenizer)
    return {"generated_per_second": rate, "hardware": jax.devices()[0].device_kind}


def plain_file(folder: pathlib.Path, seed: int, steps: int) -> pathlib.Path:
    return folder / f"plain-{seed}-{steps}.safetensors"


def plain_params(
    seed: int, steps: int, folder: pathlib.Path, data: Data, mesh: Mesh
) -> Params:
    """Return the trained plain model; train it if no earlier member has."""
    file = plain_file(folder, seed, steps)
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        params = train(base_config(seed, steps), data, mesh)
        stored.write(file, jax.device_get(params), QuantiseConfig())
    return jax.tree.map(jax.numpy.asarray, stored.read(file))


def teacher_of(params: Params, seed: int, steps: int, data: Data, mesh: Mesh) -> Teacher:
    vocab_size = data.tokenizer.get_vocab_size()
    task = plain_task(base_config(seed, steps), vocab_size)
    return Teacher(task, params, vocab_size, DistilConfig(teacher=PLAIN), mesh)


def train(
    config: Experiment,
    data: Data,
    mesh: Mesh,
    params: Params | None = None,
    teacher: Teacher | None = None,
) -> Params:
    """Train from the beginning, or from these parameters; return the last ones."""
    vocab_size = data.tokenizer.get_vocab_size()
    task, program = build(config, vocab_size, mesh, len(data.train.tokens))
    if teacher:
        program = taught_by(teacher, program)
    step = compile_step(config, program)
    if params is None:
        state = program.init(jax.random.key(config.seed))
    else:
        state = program.adopt(begin(learner_of(config, task), program, params))
    for batch in train_batches(data.train, row_order(config), 0, config.steps):
        state, metrics = step(state, program.place(batch))
        jax.block_until_ready(metrics)
    return program.params(state)


def measure_frontier(model: str, degree: int, seed: int, steps: int) -> Line:
    """Return the losses of a run by step, and the bytes that a device sends in a step."""
    config = frontier_config(model, degree, seed, steps)
    mesh, data = check(config), prepare(config.data)
    vocab_size = data.tokenizer.get_vocab_size()
    task, program = build(config, vocab_size, mesh, len(data.train.tokens))
    step = compile_step(config, program)
    sent = sum(entry.sent_bytes for entry in step_ledger(step, mesh))
    rows = config.data.batch_size
    evaluate = Evaluator(task, data.tokenizer, data.validation, rows, mesh)
    few = partial(evaluate, num_batches=config.eval_batches)
    state, curve = program.init(jax.random.key(seed)), []
    batches = train_batches(data.train, row_order(config), 0, config.steps)
    for index, batch in enumerate(batches, 1):
        state, metrics = step(state, program.place(batch))
        jax.block_until_ready(metrics)
        if index % config.eval_every == 0:
            curve.append([index, few(program.params(state))["loss"]])
    parameters = sum(x.size for x in jax.tree.leaves(program.params(state)))
    sizes = {"parameters": int(np.int64(parameters)), "sent_bytes": float(sent)}
    return sizes | {"rows": rows, "curve": curve}
