"""Read folders that record.py made, compare what they compute, and write them back.

.venv/bin/python -m tests.lm.models.hub.check FOLDER... [--to=/tmp/exported]

With --to, each is written there, with logits in ours.safetensors for `record.py load`.
"""

import argparse
import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from lm.decoding import Sampling, generate
from lm.models.hub.arrays import check_tensors, places, read_params, tensors_of
from lm.models.hub.fields import find_shape, fitting, from_theirs, whole
from lm.models.hub.shapes import Shape
from lm.models.hub.tensors import DTYPES, open_tensors, read_json, write_tensors
from lm.models.setting import Setting
from lm.models.transformer.config import TransformerConfig
from lm.task import Params, Task
from lm.vocabulary import END_ID

SEQ_LEN = 24


class Read(NamedTuple):
    values: dict  # config.json
    shape: Shape
    config: TransformerConfig
    task: Task
    params: Params
    end_id: int


def read(folder: pathlib.Path, **changes) -> Read:
    values = read_json(folder / "config.json")
    shape = find_shape(values, "config.json")
    given = TransformerConfig(**changes)
    config = from_theirs(shape, values, given, "config.json")
    setting = Setting(config.vocab_rows, SEQ_LEN)
    config.validate(setting)
    task = config.task(setting)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(task.init, jax.random.key(0)),
    )
    stored = open_tensors(folder)
    stored = check_tensors(shape, places(shape, abstract), stored, config.tied)
    end_id = values["eos_token_id"]
    params = read_params(shape, abstract, stored, end_id)
    return Read(values, shape, config, task, params, end_id)


def ours(tokens: np.ndarray, end_id: int) -> np.ndarray:
    """Return the ids of tokens here, where the end token and token 0 change places."""
    order = np.arange(max(end_id, tokens.max(initial=0)) + 1)
    order[[END_ID, end_id]] = end_id, END_ID
    return order[tokens].astype(np.int32)


def logits_of(read: Read, tokens: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Return the logits of their tokens, with their ids in the last dim."""
    batch = {
        "tokens": np.pad(ours(tokens, read.end_id), ((0, 0), (0, 1))),
        "segments": np.pad(segments, ((0, 0), (0, 1))),
    }
    logits = jax.jit(read.task.logits)(read.params, batch)
    order = ours(np.arange(logits.shape[-1]), read.end_id)
    return np.ascontiguousarray(np.asarray(logits)[..., order])


def compare(read: Read, folder: pathlib.Path) -> float:
    """Return the largest difference of a logit; AssertionError for another continuation."""
    found = load_file(folder / "expected.safetensors")
    lengths = found["lengths"]
    segments = (np.arange(found["tokens"].shape[1]) < lengths[:, None]).astype(np.int32)
    logits = logits_of(read, found["tokens"], segments)
    worst = 0.0
    for row, length in enumerate(lengths):
        chosen = logits[row, [0, length // 2, length - 1]]
        worst = max(worst, np.abs(chosen - found[f"logits.{row}"]).max())
    prompts = [
        ours(row[:length], read.end_id).tolist()
        for row, length in zip(found["tokens"], lengths, strict=True)
    ]
    num_new = len(found["greedy.0"])
    new = generate(read.task, read.params, prompts, num_new, Sampling(temperature=0), 0)
    for row, tokens in enumerate(new):
        expected = found[f"greedy.{row}"].tolist()
        expected = (expected + [read.end_id])[
            : (expected + [read.end_id]).index(read.end_id)
        ]
        assert ours(np.array(tokens, int), read.end_id).tolist() == expected, (folder, row)
    return float(worst)


def write(read: Read, folder: pathlib.Path, most_bytes: int = 10**9) -> None:
    """Write a folder of float32, or of the type that it came in."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = DTYPES[read.values["dtype"]]
    write_tensors(
        folder, *tensors_of(read.shape, read.params, read.end_id, dtype), most_bytes
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", type=pathlib.Path, nargs="+")
    parser.add_argument("--to", type=pathlib.Path)
    given = parser.parse_args()
    for folder in given.folders:
        model = read(folder)
        print(f"{folder}: max_logit_difference {compare(model, folder):.3g}")
        if given.to:
            write_for_load(model, given.to / folder.name)


def write_for_load(model: Read, folder: pathlib.Path) -> None:
    write(model, folder)
    values = fitting(whole(model.config, 0, 0), model.shape.architecture)[1]
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_rows, (2, 20))
    logits = logits_of(model, tokens, np.ones(tokens.shape, np.int32))
    save_file({"tokens": tokens, "logits": logits}, folder / "ours.safetensors")


if __name__ == "__main__":
    main()
