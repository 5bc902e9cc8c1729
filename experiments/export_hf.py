"""Write a run's model as a folder of Hugging Face, which transformers and others can load.

python -m experiments.export_hf --workdir=runs/x --to=FOLDER [--checkpoint=best|latest|STEP]
    [--dtype=bfloat16 --file_gb=5]

Writes safetensors, config.json and the tokenizer, then reads the folder back and prints
`max_logit_difference`, the largest difference of a logit between the run's model and what
was written. A model that came by import_hf goes back as it came: with its own tokenizer,
the other fields of its config.json, and its type of numbers. Any other transformer is
written as the first shape that it has, or refused with the fields that no shape has.
"""

import json
import pathlib
import shutil
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs.base import Experiment
from experiments.processes import join
from experiments.processes.messages import is_main_process, user_errors
from experiments.run import startup
from experiments.run.build import plain_task
from experiments.run.restore import define_checkpoint, load_run
from experiments.run.workdir import HUB, family_name, read_config, read_tokenizer
from lm.data.pretrained import found_in
from lm.models.hub.arrays import check_tensors, places, read_params, tensors_of
from lm.models.hub.fields import find_shape, fitting, whole
from lm.models.hub.shapes import Shape
from lm.models.hub.tensors import DTYPES, find_tensors, read_json, write_tensors
from lm.models.transformer.config import TransformerConfig
from lm.precision import PrecisionConfig
from lm.task import Params
from lm.vocabulary import END_ID

join.define_flags()
WORKDIR = startup.define_workdir()
CHECKPOINT = define_checkpoint()
TO = flags.DEFINE_string("to", None, "Folder to write, which must be new or empty.")
DTYPE = flags.DEFINE_enum(
    "dtype", None, list(DTYPES), "Type of the numbers; default: as it came, or float32."
)
FILE_GB = flags.DEFINE_float(
    "file_gb", 5.0, "Most gigabytes of a file; more are several.", lower_bound=1e-6
)
ROWS, LENGTH = 2, 64  # of the batch whose logits are compared


def main() -> None:
    with user_errors():
        workdir, folder = startup.workdir(WORKDIR), given_folder()
        shape, values = shape_of(workdir, read_config(workdir))
        dtype = DTYPE.value or values.get("dtype") or values.get("torch_dtype")
        dtype = dtype if dtype in DTYPES else "float32"
        values |= {"dtype": dtype, "torch_dtype": dtype}  # newer and older names
        join.start_jax()
        config, task, params, step, mesh = load_run(workdir, CHECKPOINT.value)
        end_id = END_ID
        if came(workdir):
            file = workdir / HUB / "tokenizer.json"
            end_id = found_in(file, config.data.end_token, None).end_id
        if is_main_process():
            folder.mkdir(parents=True, exist_ok=True)
            sizes, make = tensors_of(shape, params, end_id, DTYPES[dtype])
            write_tensors(folder, sizes, make, int(FILE_GB.value * 1e9))
            write_json(folder / "config.json", values)
            write_tokenizer(workdir, folder, config)
        multihost_utils.sync_global_devices("folder written")
        difference = compared(config, shape, params, folder, end_id, mesh)
    if is_main_process():
        print(f"step {step} of {workdir} as a {shape.architecture}, {dtype}, in {folder}")
        print(f"max_logit_difference {difference:.3g}")


def given_folder() -> pathlib.Path:
    if not TO.value:
        raise ValueError("no --to given; give a folder that is new or empty")
    folder = pathlib.Path(TO.value).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--to={folder} is not an empty folder; give another")
    return folder


def came(workdir: pathlib.Path) -> bool:
    """Tell whether the model of a run came from Hugging Face."""
    return (workdir / HUB / "config.json").exists()


def shape_of(workdir: pathlib.Path, config: Experiment) -> tuple[Shape, dict[str, Any]]:
    """Return the shape to write and its config.json; ValueError if the model has none."""
    if not isinstance(config.model, TransformerConfig):
        raise ValueError(
            f"{workdir} is of the {family_name(config)} family; only transformers have a "
            "shape of Hugging Face"
        )
    vocab_size = read_tokenizer(workdir).get_vocab_size()
    model = whole(config.model, vocab_size, config.data.seq_len)
    if not came(workdir):
        shape, values = fitting(model)
        return shape, values | {"bos_token_id": END_ID, "eos_token_id": END_ID}
    file = workdir / HUB / "config.json"
    given = read_json(file)
    shape, values = fitting(model, find_shape(given, str(file)).architecture)
    return shape, given | values


def write_json(file: pathlib.Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(
    workdir: pathlib.Path, folder: pathlib.Path, config: Experiment
) -> None:
    """Write the tokenizer that the model came with, or else the run's own."""
    if came(workdir):
        for file in (workdir / HUB).iterdir():
            if file.name != "config.json":
                shutil.copyfile(file, folder / file.name)
        return
    shutil.copyfile(workdir / "tokenizer.json", folder / "tokenizer.json")
    end = read_tokenizer(workdir).id_to_token(END_ID)
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,  # every text begins with it too
        "eos_token": end,
        "model_max_length": config.model.context or config.data.seq_len,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", values)


def compared(
    config: Experiment,
    shape: Shape,
    params: Params,
    folder: pathlib.Path,
    end_id: int,
    mesh: Mesh,
) -> float:
    """Return the largest difference of a logit, in float32, to what the folder holds."""
    vocab_size = params["embedding"].shape[0]
    task = plain_task(replace(config, precision=PrecisionConfig()), vocab_size)
    rng = np.random.default_rng(0)
    shape_BT = ROWS, min(LENGTH, config.data.seq_len) + 1
    tokens_BT = rng.integers(0, vocab_size, shape_BT, np.int32)
    batch = {"tokens": tokens_BT, "segments": np.ones_like(tokens_BT)}
    logits = jax.jit(task.logits)
    ours = jax.device_get(logits(params, batch))
    replicated = NamedSharding(mesh, P())
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), params
    )
    stored = find_tensors(folder)
    stored = check_tensors(shape, places(shape, abstract), stored, config.model.tied)
    theirs = jax.device_get(logits(read_params(shape, abstract, stored, end_id), batch))
    return float(jnp.max(jnp.abs(ours - theirs)))


if __name__ == "__main__":
    startup.run(main)
