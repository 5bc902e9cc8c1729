"""A model of Hugging Face beside what transformers recorded of it, and written back.

The recorded files are those of tests/lm/models/hub/record.py, which also loads what is
written back.
"""

import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import load_file, save_file

from experiments.sweeps.results import Line
from lm.decoding import Sampling, generate, until_end
from lm.models.hub.arrays import check_tensors, places, read_params, tensors_of
from lm.models.hub.fields import find_shape, fitting, from_theirs, whole
from lm.models.hub.shapes import Shape
from lm.models.hub.tensors import DTYPES, find_tensors, read_json, write_tensors
from lm.models.setting import Setting
from lm.models.transformer.config import TransformerConfig
from lm.task import Params, Task, num_parameters
from lm.vocabulary import END_ID

SEQ_LEN = 24
TOKENS = 2, 20  # rows and their length, for `record.py load`


class Model(NamedTuple):
    values: dict  # config.json
    shape: Shape
    config: TransformerConfig
    task: Task
    params: Params
    end_id: int


def load(folder: pathlib.Path, **given: object) -> Model:
    """Read a model whole; `given` are fields of its config that the folder leaves open."""
    source = str(folder / "config.json")
    values = read_json(folder / "config.json")
    shape = find_shape(values, source)
    config = from_theirs(shape, values, TransformerConfig(**given), source)
    setting = Setting(config.vocab_rows, SEQ_LEN)
    config.validate(setting)
    task, sharding = config.task(setting), SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(task.init, jax.random.key(0)),
    )
    wanted = places(shape, abstract)
    stored = check_tensors(shape, wanted, find_tensors(folder), config.tied)
    params = read_params(shape, abstract, stored, values["eos_token_id"])
    return Model(values, shape, config, task, params, values["eos_token_id"])


def ours(tokens: np.ndarray, end_id: int) -> np.ndarray:
    """Return the ids of tokens here, where the end token and token 0 change places."""
    order = np.arange(max(end_id, tokens.max(initial=0)) + 1)
    order[[END_ID, end_id]] = end_id, END_ID
    return order[tokens].astype(np.int32)


def logits_of(model: Model, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the logits of padded rows of their tokens, with their ids in the last dim."""
    segments = (np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int32)
    rows = {"tokens": ours(tokens, model.end_id), "segments": segments}
    batch = {name: np.pad(x, ((0, 0), (0, 1))) for name, x in rows.items()}
    logits = np.asarray(jax.jit(model.task.logits)(model.params, batch))
    return np.ascontiguousarray(
        logits[..., ours(np.arange(logits.shape[-1]), model.end_id)]
    )


def logit_difference(model: Model, found: dict[str, np.ndarray]) -> float:
    """Return the largest difference of a logit from those that are recorded."""
    lengths = found["lengths"]
    logits = logits_of(model, found["tokens"], lengths)
    return max(
        float(np.abs(logits[row, [0, n // 2, n - 1]] - found[f"logits.{row}"]).max())
        for row, n in enumerate(lengths)
    )


def continues_alike(model: Model, found: dict[str, np.ndarray]) -> bool:
    """Tell whether greedy decoding, of all prompts at once, gives what is recorded."""
    rows = zip(ours(found["tokens"], model.end_id), found["lengths"], strict=True)
    prompts = [row[:length].tolist() for row, length in rows]
    expected = [ours(found[f"greedy.{i}"], model.end_id) for i in range(len(prompts))]
    greedy = Sampling(temperature=0)
    new = generate(model.task, model.params, prompts, len(expected[0]), greedy, 0)
    return new == [until_end(row.tolist()) for row in expected]


def write_back(model: Model, folder: pathlib.Path, file_bytes: int = 10**9) -> None:
    """Write the tensors, in the type that they came in, and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = DTYPES[model.values["dtype"]]
    made = tensors_of(model.shape, model.params, model.end_id, dtype)
    write_tensors(folder, *made, file_bytes)
    values = fitting(whole(model.config, 0, 0), model.shape.architecture)[1]
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")


def tensors(folder: pathlib.Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return the type, the shape and the bits of each tensor in a folder."""
    return {
        name: (x.dtype.name, x.shape, x.tobytes())
        for file in folder.glob("model*.safetensors")
        for name, x in load_file(file).items()
    }


def measure(folder: pathlib.Path, to: pathlib.Path) -> Line:
    model, found = load(folder), load_file(folder / "expected.safetensors")
    write_back(model, to)
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_rows, TOKENS)
    logits = logits_of(model, tokens, np.full(TOKENS[0], TOKENS[1]))
    save_file({"tokens": tokens, "logits": logits}, to / "ours.safetensors")
    return {
        "architecture": model.shape.architecture,
        "parameters": num_parameters(model.params),
        "max_logit_difference": logit_difference(model, found),
        "continues_alike": continues_alike(model, found),
        "comes_back": tensors(to) == tensors(folder),
    }


def table(lines: list[Line]) -> str:
    rows = [
        "| shape | models | parameters | largest difference of a logit "
        "| same continuation | same bits back |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(line["architecture"] for line in lines):
        own = [line for line in lines if line["architecture"] == name]
        sizes = [line["parameters"] for line in own]
        worst = max(line["max_logit_difference"] for line in own)
        alike, back = (sum(x[k] for x in own) for k in ("continues_alike", "comes_back"))
        rows.append(
            f"| {name} | {len(own)} | {min(sizes):,} to {max(sizes):,} | {worst:.1e} | "
            f"{alike} of {len(own)} | {back} of {len(own)} |"
        )
    return "\n".join(rows)
