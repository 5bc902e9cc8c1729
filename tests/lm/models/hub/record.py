"""Make small models with transformers, record what they compute, and load models back.

It needs PyTorch and transformers, so it runs in an environment of its own:

python3.11 -m venv /tmp/hub && /tmp/hub/bin/pip install torch transformers
/tmp/hub/bin/python tests/lm/models/hub/record.py make tests/lm/models/hub/recorded
/tmp/hub/bin/python tests/lm/models/hub/record.py make /tmp/others --seed=1 --num=20
/tmp/hub/bin/python tests/lm/models/hub/record.py load FOLDER...

`make` writes `num` models of each shape, with random sizes and weights; half of them in
bfloat16, and one in several files. Beside each is expected.safetensors: prompts, their
logits at some positions (of the padded batch, in float32), and what greedy decoding
adds. `load` loads what experiments.export_hf or experiments.studies.hub wrote, and compares
the logits in FOLDER/ours.safetensors.
"""

import argparse
import json
import pathlib
import random
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

TEXT = pathlib.Path(__file__).read_text(encoding="utf-8")
LENGTHS, NUM_NEW = (13, 7), 10
QWEN = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def byte_level(end_first: bool, others: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if others:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=alphabet, special_tokens=special * end_first,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_special_tokens(special + others)
    return tokenizer


def sentencepiece() -> Tokenizer:
    """Make one like Llama 2's: spaces as U+2581, bytes for what has no token."""
    text = "\u2581" + TEXT.replace(" ", "\u2581")
    learner = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=110, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    learner.train_from_iterator([text], trainer)
    learned = json.loads(learner.to_str())["model"]
    in_bytes = [f"<0x{i:02X}>" for i in range(256)]
    special, pieces = list(learned["vocab"])[:3], list(learned["vocab"])[3:]
    vocab = {token: i for i, token in enumerate([*special, *in_bytes, *pieces])}
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(special)
    return tokenizer


def llama_sizes(rng: random.Random) -> dict:
    groups = rng.choice([1, 2])
    return {
        "hidden_size": 16,
        "intermediate_size": rng.choice([20, 24, 28]),
        "num_hidden_layers": rng.choice([1, 2, 3]),
        "num_attention_heads": 2 * groups,
        "num_key_value_heads": groups,
        "head_dim": rng.choice([4, 8, 10]),
        "max_position_embeddings": rng.choice([32, 64]),
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-2]),
        "tie_word_embeddings": rng.random() < 0.5,
    }


def rope(rng: random.Random, scaled: bool) -> dict:
    base = {"rope_theta": rng.choice([100.0, 1e4, 5e5])}
    linear = base | {"rope_type": "linear", "factor": rng.choice([2.0, 3.5])}
    llama3 = base | {
        "rope_type": "llama3",
        "factor": rng.choice([4.0, 8.0]),
        "low_freq_factor": 1.0,
        "high_freq_factor": rng.choice([3.0, 4.0]),
        "original_max_position_embeddings": rng.choice([16, 24]),
    }
    plain = base | {"rope_type": "default"}
    return rng.choice([linear, llama3, llama3]) if scaled else plain


def gpt2(rng: random.Random):
    return transformers.GPT2Config(
        n_embd=16,
        n_layer=rng.choice([1, 2, 3]),
        n_head=rng.choice([1, 2, 4]),
        n_inner=rng.choice([None, 20, 40]),
        n_positions=rng.choice([24, 40]),
        layer_norm_epsilon=rng.choice([1e-5, 1e-2]),
        activation_function=rng.choice(["gelu_new", "gelu", "relu", "silu"]),
        tie_word_embeddings=rng.random() < 0.7,
    )


def llama(rng: random.Random):
    return transformers.LlamaConfig(
        **llama_sizes(rng),
        attention_bias=rng.random() < 0.5,
        mlp_bias=rng.random() < 0.5,
        rope_parameters=rope(rng, scaled=rng.random() < 0.7),
    )


def mistral(rng: random.Random):
    return transformers.MistralConfig(
        **llama_sizes(rng),
        sliding_window=rng.choice([1, 4, 6, None]),
        rope_parameters=rope(rng, scaled=False),
    )


def qwen(kind, rng: random.Random, **more):
    sizes = llama_sizes(rng)
    layers = sizes["num_hidden_layers"]
    return kind(
        **sizes,
        **more,
        use_sliding_window=rng.random() < 0.6,
        sliding_window=rng.choice([3, 5]),
        max_window_layers=rng.randint(0, layers),
        rope_parameters=rope(rng, scaled=rng.random() < 0.3),
    )


def qwen2(rng: random.Random):
    return qwen(transformers.Qwen2Config, rng)


def qwen3(rng: random.Random):
    return qwen(transformers.Qwen3Config, rng, attention_bias=rng.random() < 0.5)


# Shape -> (its config, its tokenizer, rows of the vocabulary that are no token).
SHAPES = {
    "gpt2": (gpt2, lambda: byte_level(False, []), 0),
    "llama": (llama, sentencepiece, 0),
    "mistral": (mistral, lambda: byte_level(True, []), 0),
    "qwen2": (qwen2, lambda: byte_level(False, ["<|im_start|>", "<|im_end|>"]), 6),
    "qwen3": (qwen3, lambda: byte_level(False, ["<|im_end|>", "<think>"]), 3),
}


def wrapped(tokenizer: Tokenizer):
    end = "</s>" if tokenizer.token_to_id("</s>") else "<|endoftext|>"
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)


def make(folder: pathlib.Path, name: str, index: int, seed: int) -> None:
    rng = random.Random(f"{name} {index} {seed}")
    torch.manual_seed(rng.randrange(1 << 30))
    config_of, tokenizer_of, padding = SHAPES[name]
    config, tokenizer = config_of(rng), wrapped(tokenizer_of())
    config.vocab_size = len(tokenizer) + padding
    config.eos_token_id, config.bos_token_id = tokenizer.eos_token_id, None
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for key, x in model.named_parameters():
            is_norm = "norm" in key or "ln_" in key
            x.normal_(float(is_norm and key.endswith("weight")), 0.2)
    half = index % 2 == 1
    if half:
        model = model.to(torch.bfloat16)
    folder = folder / f"{name}-{index}"
    model.save_pretrained(folder, max_shard_size="12KB" if index == 1 else "1GB")
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    for file in folder.glob("*.json"):  # without their white space
        text = json.dumps(
            json.loads(file.read_text(encoding="utf-8")), separators=(",", ":")
        )
        file.write_text(text + "\n", encoding="utf-8")
    # Loaded again, because a change of type also rounds the rotary frequencies.
    model = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    save_file(expected(model, tokenizer.eos_token_id), folder / "expected.safetensors")


def expected(model, end_id: int) -> dict[str, torch.Tensor]:
    vocab_size = model.config.vocab_size
    tokens = torch.randint(0, vocab_size, (len(LENGTHS), max(LENGTHS)))
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    tokens = tokens.where(mask, end_id)
    found = {"tokens": tokens, "lengths": torch.tensor(LENGTHS)}
    with torch.no_grad():
        logits = model(tokens, attention_mask=mask.long()).logits
        for row, length in enumerate(LENGTHS):
            found[f"logits.{row}"] = logits[row, [0, length // 2, length - 1]].clone()
            prompt, new = tokens[row, :length][None], []
            for _ in range(NUM_NEW):  # plain: one full pass for each token
                best = model(prompt).logits[0, -1].argmax()
                prompt = torch.cat([prompt, best[None, None]], 1)
                new.append(best)
            found[f"greedy.{row}"] = torch.stack(new)
    return found


def load(folder: pathlib.Path) -> None:
    """Load a folder that was exported, and compare with ours.safetensors in it."""
    kind = transformers.AutoModelForCausalLM
    model, info = kind.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    keys = {
        k: sorted(info[k]) for k in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    ours = load_file(folder / "ours.safetensors")
    with torch.no_grad():
        theirs = model.eval()(ours["tokens"].long()).logits
    difference = (theirs - ours["logits"]).abs().max().item()
    print(f"{folder}: {keys}, max_logit_difference {difference:.3g}")
    if any(keys.values()) or difference > 1e-5:
        sys.exit(f"{folder} was not written as it should be")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("make", "load"))
    parser.add_argument("folders", type=pathlib.Path, nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num", type=int, default=2)
    given = parser.parse_args()
    for folder in given.folders:
        if given.what == "load":
            load(folder)
            continue
        for name in SHAPES:
            for index in range(given.num):
                make(folder, name, index, given.seed)


if __name__ == "__main__":
    main()
