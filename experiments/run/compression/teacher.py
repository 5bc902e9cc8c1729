"""Let a trained run teach another: its logits join the batches of the other's training.

The teacher lies on the devices of the student's mesh, each large parameter split over all
of them, and reads the rows before they are placed. So the compiled step knows of a teacher
only that its batches have more arrays, and every strategy may be taught.
"""

import pathlib
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from configs.base import Experiment
from experiments.processes.messages import user_errors
from experiments.run.evaluation import LOGITS
from experiments.run.restore import load_params
from experiments.run.workdir import read_config, read_tokenizer
from lm.compress.distil import (
    READS,
    Cache,
    DistilConfig,
    Said,
    Shape,
    row_hashes,
    shape_of,
    taught,
    top_logits,
)
from lm.data.prepare import Data
from lm.task import Batch, Params, Task
from parallel.layout import FSDP
from parallel.mesh import device_mesh, knowing, place_rows
from parallel.program import AXIS, Program


def check_teacher(config: Experiment, data: Data) -> None:
    """Raise ValueError if there is no such teacher, or it cannot teach this model."""
    distil = config.compress.distil
    if not distil.teacher:
        return
    folder, usual = pathlib.Path(distil.teacher).expanduser(), "compress.distil.teacher"
    if jax.process_count() > 1:
        raise ValueError(
            f"{usual} is set in a run of {jax.process_count()} processes, and a teacher "
            "reads the rows of one; start one process with all devices"
        )
    teacher = read_config(folder)
    theirs, ours = read_tokenizer(folder), data.tokenizer
    if theirs.to_str() != ours.to_str():
        raise ValueError(
            f"{usual} {folder} has another tokenizer, of {theirs.get_vocab_size()} tokens, "
            f"than this run, of {ours.get_vocab_size()}; train the teacher on the data of "
            "this run, or this run on that of the teacher"
        )
    reads = teacher.model.reads, teacher.data.source_len
    if reads != (config.model.reads, config.data.source_len):
        raise ValueError(
            f"{usual} {folder} learns from {reads[0]} with {reads[1]} source tokens, and "
            f"this run from {config.model.reads} with {config.data.source_len}"
        )
    if teacher.data.seq_len < config.data.seq_len:
        raise ValueError(
            f"{usual} {folder} reads rows of {teacher.data.seq_len} tokens, but "
            f"data.seq_len is {config.data.seq_len}; shorten it, or choose another teacher"
        )


def with_teacher(program: Program, config: Experiment) -> Program:
    """Return the program with the teacher's logits in its batches, if there is one.

    A teacher without a checkpoint, or a cache of another one, is an error of use.
    """
    distil = config.compress.distil
    if not distil.teacher:
        return program
    folder, mesh = pathlib.Path(distil.teacher).expanduser(), teacher_mesh(program.mesh)
    cache = None
    with user_errors():
        _, task, params, step = load_params(folder, "best", mesh, FSDP.params)
        if distil.cache:
            name = f"{folder.absolute()} at step {step}"
            cache = Cache(pathlib.Path(distil.cache).expanduser(), name)
    vocab_size = read_tokenizer(folder).get_vocab_size()
    return taught_by(Teacher(task, params, vocab_size, distil, mesh, cache), program)


def taught_by(teacher: "Teacher", program: Program) -> Program:
    def place(rows: dict[str, np.ndarray]) -> Batch:
        return program.place(taught(rows, teacher(rows), teacher.config))

    return program._replace(place=place)


def teacher_mesh(mesh: Mesh) -> Mesh:
    """Return a mesh of one axis over the same devices."""
    return device_mesh({AXIS: -1}, list(mesh.devices.flat))


class Teacher:
    """A trained model on the devices of a mesh; it tells the logits of rows."""

    def __init__(
        self,
        task: Task,
        params: Params,
        vocab_size: int,
        config: DistilConfig,
        mesh: Mesh,
        cache: Cache | None = None,
    ):
        self.params, self.vocab_size, self.mesh = params, vocab_size, mesh
        self.config, self.cache = config, cache
        self.shapes: dict[int, Shape] = {}
        tell = partial(top_logits, task, top_k=config.top_k, vocab_size=vocab_size)
        self.tell = jax.jit(knowing(mesh, tell))

    def __call__(self, rows: dict[str, np.ndarray]) -> Said:
        if self.cache is None:
            return self.live(rows)
        keys = row_hashes(rows)
        found = self.cache.read(keys, self.shape(rows))
        if found is None:
            found = self.live(rows)
            self.cache.write(keys, found)
        return found

    def shape(self, rows: dict[str, np.ndarray]) -> Shape:
        """Return the shape of what it says of a row."""
        length = rows["tokens"].shape[1]
        if length not in self.shapes:
            one = {name: rows[name][:1] for name in READS if name in rows}
            self.shapes[length] = shape_of(jax.eval_shape(self.tell, self.params, one))
        return self.shapes[length]

    def live(self, rows: dict[str, np.ndarray]) -> Said:
        """Read a few rows at once, so that few whole logits exist."""
        num_rows, length = rows["tokens"].shape
        rows = {name: rows[name] for name in READS if name in rows}
        at_once = self.mesh.size * max(LOGITS // (length * self.vocab_size), 1)
        at_once = min(at_once, -(-num_rows // self.mesh.size) * self.mesh.size)
        parts = []
        for start in range(0, num_rows, at_once):
            part = {name: filled(x[start:], at_once) for name, x in rows.items()}
            parts.append(self.tell(self.params, place_rows(self.mesh, part)))
        whole = (
            np.concatenate(x)[:num_rows] for x in zip(*jax.device_get(parts), strict=True)
        )
        return Said(*whole)


def filled(x: np.ndarray, num_rows: int) -> np.ndarray:
    """Return that many rows, the missing ones empty."""
    missing = max(num_rows - len(x), 0)
    return np.concatenate([x[:num_rows], np.zeros((missing, *x.shape[1:]), x.dtype)])
