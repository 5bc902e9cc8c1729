"""A model on disk at its compressed size: codes, masks and factors in one safetensors file.

Each array has the smallest of these forms, and none loses anything:

  values          the numbers themselves, float32
  codes, scale    a quantised matrix; two codes of 4 bits share a byte
  ... and kept    a pruned matrix: a bit for each weight, and the numbers of those not 0

The metadata of the file says how each array was stored. The format of the file is that of
Hugging Face: 8 bytes with the length of a JSON header, the header, the bytes.
"""

import json
import math
import pathlib
from typing import Any

import numpy as np
import qwix

from lm.compress.leaves import Leaves, Names, flat, matrices, nested
from lm.compress.quantise import QuantiseConfig, coded
from lm.task import Params

DTYPES = {"F32": np.float32, "I8": np.int8, "U8": np.uint8}
Arrays = dict[str, np.ndarray]


def stored(params: Params, config: QuantiseConfig) -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays of the file, and what to know of each parameter."""
    chosen: Leaves = matrices(params, config.matrices) if config.bits else {}
    arrays: Arrays = {}
    told: dict[str, Any] = {}
    for keys, x in flat(params).items():
        name = "/".join(map(str, keys))
        parts, info = parts_of(keys, np.asarray(x), config if keys in chosen else None)
        arrays |= {f"{name}.{part}": value for part, value in parts.items()}
        told[name] = info | {"keys": list(keys), "shape": list(x.shape)}
    return arrays, told


def parts_of(
    keys: Names, x: np.ndarray, config: QuantiseConfig | None
) -> tuple[Arrays, dict[str, Any]]:
    """Return one parameter in its smallest form."""
    bits, scales = 32, {}
    values = x.ravel()
    if config:
        found = coded(keys, x, config)
        bits, scales = config.bits, {"scale": np.asarray(found.scale, np.float32)}
        values = np.asarray(found.qvalue).astype(np.int8).ravel()
    kept = (values != 0) | np.signbit(values)  # -0.0 has a bit of its own
    sparse = values.size / 8 + kept.sum() * bits / 8 < values.size * bits / 8
    parts = scales | ({"kept": np.packbits(kept)} if sparse else {})
    values = values[kept] if sparse else values
    name = "codes" if config else "values"
    return parts | {name: halved(values) if bits == 4 else values}, {"bits": bits}


def halved(codes: np.ndarray) -> np.ndarray:
    """Put two codes of 4 bits, from -8 to 7, into a byte."""
    low, high = np.resize(codes, (len(codes) + 1) // 2 * 2).reshape(-1, 2).T & 15
    return (low | high << 4).astype(np.uint8)


def doubled(packed: np.ndarray, size: int) -> np.ndarray:
    """Undo `halved`."""
    codes = np.stack([packed & 15, packed >> 4], 1).ravel()[:size].astype(np.int8)
    return np.where(codes > 7, codes - 16, codes).astype(np.int8)


def restored(arrays: Arrays, told: dict[str, Any]) -> Params:
    """Undo `stored`: the parameters as the model sees them, dequantised."""
    leaves = {}
    for name, info in told.items():
        shape, size = tuple(info["shape"]), math.prod(info["shape"])
        kept = np.ones(size, bool)
        if f"{name}.kept" in arrays:
            kept = np.unpackbits(arrays[f"{name}.kept"], count=size).astype(bool)
        values = arrays.get(f"{name}.values", arrays.get(f"{name}.codes"))
        if info["bits"] == 4:
            values = doubled(values, kept.sum())
        whole = np.zeros(size, values.dtype)
        whole[kept] = values
        whole = whole.reshape(shape)
        if (scale := arrays.get(f"{name}.scale")) is not None:
            whole = np.asarray(qwix.dequantize(qwix.QArray(whole, scale)))
        leaves[tuple(info["keys"])] = whole
    return nested(leaves)


def num_nonzero(arrays: Arrays, told: dict[str, Any]) -> int:
    """Count the parameters that are not 0 as they are stored; scales are none."""
    total = 0
    for name, info in told.items():
        size = math.prod(info["shape"])
        values = arrays.get(f"{name}.values", arrays.get(f"{name}.codes"))
        if f"{name}.kept" in arrays:
            size = int(np.unpackbits(arrays[f"{name}.kept"]).sum())
        values = doubled(values, size) if info["bits"] == 4 else values
        total += int(np.count_nonzero(values))
    return total


def write(file: pathlib.Path, params: Params, config: QuantiseConfig) -> dict[str, int]:
    """Write the file; return its bytes and how many parameters are not 0."""
    data, nonzero = encoded(params, config)
    file.write_bytes(data)
    return {"bytes": len(data), "nonzero": nonzero}


def encoded(params: Params, config: QuantiseConfig) -> tuple[bytes, int]:
    """Return what the file holds, and how many parameters are not 0."""
    arrays, told = stored(params, config)
    header: dict[str, Any] = {"__metadata__": {"stored": json.dumps(told)}}
    names = {np.dtype(kind): name for name, kind in DTYPES.items()}
    end = 0
    for name, x in arrays.items():
        place = [end, end + x.nbytes]
        header[name] = {
            "dtype": names[x.dtype], "shape": list(x.shape), "data_offsets": place
        }  # fmt: skip
        end += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays are aligned
    parts = [len(text).to_bytes(8, "little"), text, *(x.tobytes() for x in arrays.values())]
    return b"".join(parts), num_nonzero(arrays, told)


def read(file: pathlib.Path) -> Params:
    """Read the parameters as the model sees them; ValueError if the file is damaged."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:start])
        told = json.loads(header.pop("__metadata__")["stored"])
        arrays = {
            name: np.frombuffer(
                data[start + each["data_offsets"][0] : start + each["data_offsets"][1]],
                DTYPES[each["dtype"]],
            ).reshape(each["shape"])
            for name, each in header.items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is not a model that experiments.compress wrote ({error})"
        ) from None
    return restored(arrays, told)
