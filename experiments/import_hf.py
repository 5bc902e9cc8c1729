"""Begin a run with a model from Hugging Face, of which the folder is here.

python -m experiments.import_hf --model=FOLDER --workdir=runs/x [--config=FILE]
python -m experiments.train --workdir=runs/x [--config.parallel.strategy=fsdp ...]

FOLDER has config.json, tokenizer.json and safetensors, as `save_pretrained` of the library
transformers writes them. Nothing is downloaded, no pickle is opened and no PyTorch is
needed. The workdir gets a config.json and a checkpoint at step 0, with which train,
evaluate, generate and export_hf go on. The config gives everything but the model and the
tokenizer (default: configs/finetune.py); until the first step it may be changed.
"""

import pathlib
import shutil
from dataclasses import replace

import jax
from absl import flags
from jax.sharding import NamedSharding
from orbax.checkpoint import v1 as ocp

import configs
from configs.base import Experiment
from experiments.processes import join
from experiments.processes.files import write_whole
from experiments.processes.messages import human, is_main_process, say, user_errors
from experiments.run import startup
from experiments.run.build import build_task, setting
from experiments.run.checkpoint import Checkpoints
from experiments.run.workdir import HUB, check_free, held, write_description
from lm.data.pretrained import Found, found_in, pretrained_tokenizer
from lm.models.hub.arrays import check_tensors, places, read_params
from lm.models.hub.fields import find_shape, from_theirs
from lm.models.hub.shapes import Shape
from lm.models.hub.tensors import Stored, find_tensors, read_json
from lm.models.transformer.config import TransformerConfig
from lm.task import Params, Task, num_parameters
from parallel.layout import FSDP, specs
from parallel.mesh import data_mesh

join.define_flags()
CONFIG = startup.define_config()
WORKDIR = startup.define_workdir()
MODEL = flags.DEFINE_string("model", None, "Folder of the model.")
END_TOKEN = flags.DEFINE_string(
    "end_token", "", "The token that ends a text, where the folder does not say it."
)
KEPT = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
USUAL = pathlib.Path(configs.__file__).with_name("finetune.py")


def main() -> None:
    with user_errors():
        workdir, folder = startup.workdir(WORKDIR), given_folder()
        check_free(workdir)
        source = str(folder / "config.json")
        values = read_json(folder / "config.json")
        shape = find_shape(values, source)
        stored = find_tensors(folder)
        found = read_tokenizer(folder, values)
        config = imported(startup.load_config(CONFIG), shape, values, found, workdir)
        config.validate()
        join.start_jax()
        config.model.validate(setting(config, found.size))
        task = build_task(config, found.size)
        abstract = jax.eval_shape(task.init, jax.random.key(0))
        stored = check_tensors(shape, places(shape, abstract), stored, config.model.tied)
        tokenizer = pretrained_tokenizer(
            str(folder / "tokenizer.json"), found.end_token, found.size
        )
        with held(workdir, is_main_process(), lambda: True):
            save(workdir, config, read_sharded(task, shape, stored, found.end_id))
            if is_main_process():
                copy_files(folder, workdir / HUB)
                write_whole(workdir / "tokenizer.json", tokenizer.to_str())
                write_description(workdir, config, "")
    say(
        f"{human(num_parameters(abstract))} parameters of a {shape.architecture} are in "
        f"{workdir}; the end of a text is {found.end_token!r}, and data.seq_len is "
        f"{config.data.seq_len} of the model's {config.model.context}"
    )


def given_folder() -> pathlib.Path:
    if not MODEL.value:
        raise ValueError("no --model given; give the folder of a model")
    folder = pathlib.Path(MODEL.value).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"--model={folder} is not the folder of a model: it has no config.json; give "
            "one that transformers' save_pretrained wrote, or a snapshot of the hub"
        )
    return folder


def read_tokenizer(folder: pathlib.Path, values: dict) -> Found:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ValueError(
            f"{folder} has no tokenizer.json; transformers writes it: AutoTokenizer."
            f"from_pretrained('{folder}').save_pretrained('{folder}')"
        )
    end = values.get("eos_token_id")
    if isinstance(end, list):  # several end a text; none may be given
        end = end[0] if end else None
    return found_in(file, END_TOKEN.value, end)


def imported(
    config: Experiment, shape: Shape, values: dict, found: Found, workdir: pathlib.Path
) -> Experiment:
    """Return the config with the model and the tokenizer of the folder."""
    if not isinstance(config.model, TransformerConfig):
        raise ValueError(
            f"config.model is a {type(config.model).__name__}; a {shape.architecture} is "
            "a TransformerConfig: leave it out, or give another --config"
        )
    source = str(pathlib.Path(MODEL.value) / "config.json")
    model = from_theirs(shape, values, config.model, source)
    if found.size > model.vocab_rows:
        raise ValueError(
            f"the tokenizer has {found.size} tokens, but by {source} the model knows "
            f"{model.vocab_rows}; give the folder's own tokenizer.json"
        )
    data = replace(
        config.data,
        tokenizer="pretrained",
        tokenizer_file=str((workdir / HUB / "tokenizer.json").absolute()),
        end_token=found.end_token,
        vocab_size=found.size,
        seq_len=min(config.data.seq_len, model.context),
    )
    return replace(config, model=model, data=data)


def read_sharded(
    task: Task, shape: Shape, stored: dict[str, Stored], end_id: int
) -> Params:
    """Read the parameters, each spread over all devices."""
    mesh, shapes = data_mesh(-1), jax.eval_shape(task.init, jax.random.key(0))
    abstract = jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
        ),
        shapes,
        specs(FSDP.params, shapes, mesh.shape),
    )
    return read_params(shape, abstract, stored, end_id)


def save(workdir: pathlib.Path, config: Experiment, params: Params) -> None:
    folder = workdir / "checkpoints"
    # One copy of the largest array at once: there may be no room for another whole model.
    largest = 1 + max(x.nbytes for x in jax.tree.leaves(params))
    context = ocp.Context()
    context.memory.transfer_concurrent_bytes = largest
    context.memory.write_concurrent_bytes = largest
    context.array.saving.use_compression = False
    with context, Checkpoints(folder, config.keep, write=True) as checkpoints:
        checkpoints.save_parts(0, {"params": params}, None)
        checkpoints.wait()
        if 0 not in checkpoints.steps:
            raise OSError(f"the checkpoint in {folder} could not be written")


def copy_files(folder: pathlib.Path, to: pathlib.Path) -> None:
    """Copy what says how the model is read elsewhere, for export_hf."""
    to.mkdir()
    for name in KEPT:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, to / name)


if __name__ == "__main__":
    startup.run(main, config=str(USUAL))
