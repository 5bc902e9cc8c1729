"""Folders of safetensors: one file, or several with an index.

Reading takes one tensor, or a slice of one, at a time; writing holds one file at a time.
"""

import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # theirs -> NumPy's
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(jnp.bfloat16),
    "float16": np.dtype(np.float16),
}
PIECE = 1 << 22  # bytes of float32 that are read at once


class Stored(NamedTuple):
    """A tensor in a file, of which nothing has been read."""

    file: pathlib.Path
    name: str  # in the file
    shape: tuple[int, ...]
    dtype: str


def find_tensors(folder: pathlib.Path) -> dict[str, Stored]:
    """Return all tensors of a folder by name; ValueError if it does not hold any, whole."""
    found: dict[str, Stored] = {}
    for file in tensor_files(folder):
        try:
            with safe_open(file, framework="np") as opened:
                parts = {name: opened.get_slice(name) for name in opened.keys()}
                there = [
                    Stored(file, name, tuple(part.get_shape()), part.get_dtype())
                    for name, part in parts.items()
                ]
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} cannot be read: {error}; get it again") from None
        for each in there:
            if other := found.get(each.name):
                raise ValueError(f"{each.name} is both in {other.file} and in {file}")
            found[each.name] = each
    return found


def check_type(stored: Stored) -> None:
    """Raise ValueError for a tensor of numbers that cannot be read."""
    if stored.dtype not in TYPES:
        raise ValueError(
            f"{stored.name} in {stored.file} is of the type {stored.dtype}; those that can "
            f"be read are {', '.join(TYPES)}"
        )


def tensor_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """List the files that hold a model's tensors; ValueError if there are none."""
    if (folder / INDEX).exists():
        names = read_json(folder / INDEX).get("weight_map")
        if not isinstance(names, dict):
            raise ValueError(f"{folder / INDEX} has no weight_map; get it again")
        files = [folder / name for name in sorted(set(names.values()))]
    else:
        files = [folder / SINGLE] if (folder / SINGLE).exists() else []
    if missing := [file for file in files if not file.exists()]:
        raise ValueError(f"{folder / INDEX} names {missing[0].name}, which is not there")
    if files:
        return files
    if pickles := sorted(file for kind in PICKLES for file in folder.glob(kind)):
        raise ValueError(
            f"{pickles[0]} is a pickle, which can run any code when it is read; make it "
            'safetensors where PyTorch and transformers are installed: python -c "from '
            "transformers import AutoModelForCausalLM as M; "
            f"M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\""
        )
    raise ValueError(
        f"{folder} holds no {SINGLE} and no {INDEX}; give the folder of a model"
    )


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """Read a file that holds one JSON object; ValueError if it does not."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no JSON object")
    return values


def read_slice(stored: Stored, index: tuple[slice, ...]) -> np.ndarray:
    """Read a slice as float32, some rows at a time.

    The file is opened for each of them: of an open file, all that was read stays in memory.
    """
    bounds = [x.indices(n)[:2] for x, n in zip(index, stored.shape, strict=True)]
    whole = np.empty([stop - start for start, stop in bounds], np.float32)
    (start, stop), *_ = bounds
    step = max(1, PIECE // max(1, whole[:1].nbytes))
    try:
        for at in range(start, stop, step):
            part = slice(at, min(at + step, stop)), *index[1:]
            with safe_open(stored.file, framework="np") as opened:
                piece = opened.get_slice(stored.name)[part]
                whole[at - start : at - start + step] = piece
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{stored.file} cannot be read: {error}; get it again") from None
    return whole


def files_of(sizes: Iterable[tuple[str, int]], most_bytes: int) -> Iterator[list[str]]:
    """Yield the names of the tensors of each file, of `most_bytes` or of one tensor."""
    names: list[str] = []
    total = 0
    for name, size in sizes:
        if names and total + size > most_bytes:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names


def write_tensors(
    folder: pathlib.Path, sizes: dict[str, int], make: Any, most_bytes: int
) -> None:
    """Write tensors, given their bytes; `make(name)` gives the array of one.

    One file has the name that a single file has; more have numbers and an index.
    """
    groups = list(files_of(sizes.items(), most_bytes))
    weight_map = {}
    for number, names in enumerate(groups, 1):
        file = SINGLE
        if len(groups) > 1:
            file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        # Their library wants to know for which framework a file was written.
        save_file({name: make(name) for name in names}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(groups) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / INDEX).write_text(text, encoding="utf-8")
