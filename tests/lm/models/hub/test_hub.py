"""Models of Hugging Face are read as transformers computes them, and go back bit for bit.

The oracle is recorded: record.py made the folders and what is beside them.
"""

import json
import pathlib
import random
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from configs.gpt2_small import get_config as gpt2_small
from configs.llama_1b import get_config as llama_1b
from configs.tiny import get_config as tiny
from experiments.studies.hub.compare import (
    continues_alike,
    load,
    logit_difference,
    ours,
    tensors,
    write_back,
)
from lm.data.pretrained import found_in, pretrained_tokenizer
from lm.models.hub import arrays
from lm.models.hub import tensors as stored_tensors
from lm.models.hub.arrays import check_tensors, places, read_params, tensors_of
from lm.models.hub.fields import find_shape, fitting, from_theirs, whole
from lm.models.hub.shapes import SHAPES
from lm.models.hub.tensors import DTYPES, find_tensors, read_json, read_slice
from lm.models.transformer.config import TransformerConfig
from parallel.mesh import data_mesh

FOLDERS = sorted((pathlib.Path(__file__).parent / "recorded").iterdir())
LARGEST = 8 * 1000  # bytes of a file, so that there are several


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_model_computes_what_transformers_does_and_goes_back(folder, tmp_path):
    model, found = load(folder), load_file(folder / "expected.safetensors")
    assert logit_difference(model, found) < 1e-5
    if folder.name.endswith("0"):
        assert continues_alike(model, found)
    write_back(model, tmp_path, LARGEST)
    assert tensors(tmp_path) == tensors(folder)
    config = whole(model.config, 0, 0)
    shape, values = fitting(config, model.shape.architecture)
    assert whole(from_theirs(shape, values, TransformerConfig(), ""), 0, 0) == config
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors(folder).keys()


def test_stacked_layers_are_the_layers():
    folder = next(
        f for f in FOLDERS if read_json(f / "config.json").get("num_hidden_layers", 0) > 1
    )
    apart, stacked = load(folder), load(folder, scan_layers=True)
    layers = [apart.params["layers"][i] for i in range(apart.config.num_layers)]
    jax.tree.map(
        np.testing.assert_array_equal,
        stacked.params["scanned_layers"],
        jax.tree.map(lambda *x: np.stack(x), *layers),
    )
    found, dtype = tensors(folder), DTYPES[apart.values["dtype"]]
    sizes, make = tensors_of(stacked.shape, stacked.params, stacked.end_id, dtype)
    assert sizes.keys() == found.keys()
    for name in sizes:
        assert make(name).tobytes() == found[name][-1]


@pytest.mark.parametrize("scan", [False, True])
def test_each_device_reads_its_own_part(scan, monkeypatch):
    folder, mesh = FOLDERS[0], data_mesh(4)
    model, sizes = load(folder, scan_layers=scan), []

    def counted(stored, index):
        sizes.append(read_slice(stored, index).size)
        return read_slice(stored, index)

    monkeypatch.setattr(arrays, "read_slice", counted)
    monkeypatch.setattr(stored_tensors, "PIECE", 100)  # bytes: a row or two

    def split(x):
        spec = [None] * (x.ndim - 1) + ["data" if x.shape[-1] % 4 == 0 else None]
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, P(*spec))
        )

    abstract = jax.tree.map(split, model.params)
    params = read_params(model.shape, abstract, find_tensors(folder), model.end_id)
    jax.tree.map(np.testing.assert_array_equal, params, model.params)
    assert params["embedding"].sharding == abstract["embedding"].sharding
    assert max(sizes) == params["embedding"].size // 4
    swaps = 2 * params["embedding"].shape[-1]
    assert sum(sizes) == sum(x.size for x in jax.tree.leaves(params)) + swaps


NASTY = [
    "", " ", "  ", "\t", "\n", "\r\n", "\u2581", "\u00a0", "\u200b", "\ufeff", "\ufffd",
    "\0", "\x7f", "\u0301", "e\u0301", "\u00e9", "\u6f22\u5b57", "\U0001f389", "\U0010ffff",
    "\U0001f468\u200d\U0001f469", "\u0645\u0631\u062d\u0628\u0627", "\\u0041", "a" * 300,
    "<|endoftext|>", "</s>", "<s>", "<unk>", "<0x0A>", "<|im_end|>", "<think>", "'ll",
    "def f(x):", "1234567",
]  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2-0", "llama-0", "qwen3-0"])
def test_a_tokenizer_gives_their_ids_but_for_the_end(name):
    (folder,) = (f for f in FOLDERS if f.name == name)
    file, rng = folder / "tokenizer.json", random.Random(0)
    end_token, end_id, size = found_in(file, "", None)
    assert end_id == read_json(folder / "config.json")["eos_token_id"]
    here = pretrained_tokenizer(str(file), end_token, size)
    theirs = Tokenizer.from_file(str(file))
    theirs.encode_special_tokens = True  # the name of a mark in a text is text
    for _ in range(1000):
        text = "".join(rng.choices(NASTY, k=rng.randrange(8)))
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert here.encode(text).ids == ours(np.array(expected, int), end_id).tolist(), text


def test_models_of_our_own_have_a_shape():
    for config, expected in (
        (tiny, "Llama"),
        (llama_1b, "Llama"),
        (gpt2_small, "GPT2LMHead"),
    ):
        model = whole(config().model, 1000, 64)
        shape, values = fitting(model)
        assert shape.architecture.startswith(expected)
        assert values["vocab_size"] == 1000
        assert (shape, values) == fitting(model, shape.architecture)
    for changes, reason in (
        ({"norm": "none"}, "LlamaForCausalLM (model.norm 'none'"),
        ({"activation": "sigmoid"}, "Qwen3ForCausalLM ("),
        ({"residual": False}, "model.residual False"),
        ({"head_norm": True, "bias": True}, "Qwen3ForCausalLM (model.bias True)"),
    ):
        with pytest.raises(ValueError) as error:
            fitting(whole(replace(tiny().model, **changes), 1000, 64))
        assert reason in str(error.value)


def damaged(folder: pathlib.Path, change) -> str:
    """Return what is said of the folder after a change of its tensors, and undo it."""
    file = folder / "model.safetensors"
    before = file.read_bytes()
    found = dict(load_file(file))
    change(found)
    save_file(found, file, {"format": "pt"})
    with pytest.raises(ValueError) as error:
        load(folder)
    file.write_bytes(before)
    return str(error.value)


def test_wrong_tensors_are_named(tmp_path):
    folder = pathlib.Path(shutil.copytree(FOLDERS[0], tmp_path / "model"))
    name = "transformer.h.0.ln_1.bias"
    assert f"misses the tensors that a GPT2LMHeadModel of its config.json has: {name}" in (
        damaged(folder, lambda found: found.pop(name))
    )
    assert (
        "has besides the tensors that a GPT2LMHeadModel of its config.json has: more"
        in (damaged(folder, lambda found: found.update(more=found[name])))
    )
    told = damaged(folder, lambda found: found.update({name: np.ones(3, np.float32)}))
    assert f"{name} in {folder}/model.safetensors has the shape (3,); by" in told
    assert "it is (16,)" in told
    integers = damaged(folder, lambda found: found.update({name: np.ones(16, np.int8)}))
    assert "is of the type I8; those that can be read are F32, BF16, F16" in integers
    found = load_file(folder / "model.safetensors")
    for kind in (np.float32, np.uint8, bool):  # masks, in older files
        extra = {"transformer.h.0.attn.bias": np.ones((1, 4, 4), kind)}
        save_file(found | extra, folder / "model.safetensors")
        assert "transformer.h.0.attn.bias" in find_tensors(folder)
    load(folder)
    bare = {name.removeprefix("transformer."): x for name, x in found.items()}
    save_file(bare, folder / "model.safetensors")  # of the model without a head
    load(folder)
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="model.safetensors cannot be read"):
        load(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="is a pickle, .* safetensors where PyTorch"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="holds no model.safetensors and no"):
        load(folder)


def test_wrong_configs_are_refused():
    values = read_json(next(f for f in FOLDERS if f.name == "llama-0") / "config.json")
    mistral = read_json(next(f for f in FOLDERS if f.name == "qwen2-0") / "config.json")
    known = ", ".join(shape.architecture for shape in SHAPES)
    for given, changes, reason in (
        (
            values,
            {"architectures": ["MambaForCausalLM"]},
            f"'MambaForCausalLM'; .* {known}",
        ),
        (values, {"architectures": {"a": 1}}, "is of the architecture {'a': 1}"),
        (values, {"hidden_size": None}, "has no field hidden_size"),
        (values, {"hidden_act": []}, r"has hidden_act \[\]; known here are 'silu'"),
        (values, {"rope_parameters": "x"}, "frequencies 'x'; expected an object"),
        (values, {"rope_parameters": {"rope_theta": "1"}}, "'1'; expected a number"),
        (mistral, {"layer_types": 3}, "has layer_types 3; known here are first full"),
        (mistral, {"layer_types": ["full_attention"] * 9}, "known here are first full"),
        (values, {"hidden_size": "16"}, "has hidden_size '16'; expected a int"),
        (values, {"hidden_act": "gelu"}, "has hidden_act 'gelu'; known here are 'silu'"),
        (values, {"quantization_config": {}}, "its weights are quantised"),
        (
            values,
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "of the type 'yarn' .* default, linear, llama3",
        ),
        (
            values,
            {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}},
            "'llama3' needs low_freq_factor, high_freq_factor, original",
        ),
        (
            mistral,
            {
                "num_hidden_layers": 2,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "known here are first full_attention",
        ),
    ):
        if "layer_types" in changes:
            given = given | {"use_sliding_window": True, "sliding_window": 3}
        with pytest.raises(ValueError, match=reason):
            shape = find_shape(given | changes, "config.json")
            made = from_theirs(shape, given | changes, TransformerConfig(), "config.json")
            assert made.width
            pytest.fail(f"{changes} was taken")


def test_a_tied_head_may_be_written_too(tmp_path):
    folder = pathlib.Path(shutil.copytree(FOLDERS[0], tmp_path / "model"))
    file = folder / "model.safetensors"
    found = load_file(file)
    table = found["transformer.wte.weight"]
    save_file(found | {"lm_head.weight": table}, file)
    model = load(folder)
    save_file(found | {"lm_head.weight": table + 1}, file)
    with pytest.raises(ValueError, match="has besides .* lm_head.weight"):
        check_tensors(
            model.shape, places(model.shape, model.params), find_tensors(folder), True
        )
