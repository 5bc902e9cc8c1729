"""Continue prompts with a trained run, or write the targets of sources.

python -m experiments.generate --workdir=runs/a --prompt="def " --temperature=0.8 --top_k=50
python -m experiments.generate --workdir=runs/a --prompts_file=prompts.txt --temperature=0
python -m experiments.generate --workdir=runs/a --prompts_file=prompts.txt --devices=8
python -m experiments.generate --workdir=runs/a --prompt="x = " --beam=4 --length_penalty=1

A model with an encoder takes each prompt as a source, and what it writes is the target.
Sampled (and greedy) texts are spread over the devices, --slots of them at once on each; see
experiments/continuous_batching.py. The text does not depend on how they are spread.
"""

from typing import NamedTuple

import numpy as np
from absl import flags
from tokenizers import Tokenizer

from configs.base import Experiment
from experiments import startup
from experiments.continuous_batching import Batching, generate_spread
from experiments.evaluate import CHECKPOINT, load_run
from lm.data.corpus import list_files, read_text
from lm.data.pair_rows import encode_sources
from lm.data.tokenizer import END_ID, load_tokenizer
from lm.decoding import Beam, Sampling, generate
from lm.task import Params, Task

PROMPT = flags.DEFINE_string("prompt", None, "The text to continue.")
PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "A file, a prompt a line.")
NUM_NEW = flags.DEFINE_integer("max_new_tokens", 100, "Tokens to add at the most.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 is greedy.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Keep the k likeliest tokens; 0: all.")
TOP_P = flags.DEFINE_float("top_p", 1.0, "Keep the likeliest tokens of this share.")
BEAM = flags.DEFINE_integer("beam", 0, "Search with so many beams; 0: sample.")
LENGTH_PENALTY = flags.DEFINE_float(
    "length_penalty", 0.6, "Of the beam search: 0 is none, more favours longer texts."
)
SLOTS = flags.DEFINE_integer("slots", 8, "Texts at once on a device.")
CHUNK = flags.DEFINE_integer("chunk", 32, "Tokens of a prompt that are read at once.")
SEED = flags.DEFINE_integer("seed", 0, "Of the sampling.")


def read_prompts() -> list[str]:
    if (PROMPT.value is None) == (PROMPTS_FILE.value is None):
        raise ValueError("give either --prompt or --prompts_file")
    if PROMPT.value is not None:
        return [PROMPT.value]
    (file,) = list_files("--prompts_file", PROMPTS_FILE.value)
    return read_text(file).splitlines()


def decoding_method() -> Sampling | Beam:
    if BEAM.value:
        method = Beam(BEAM.value, LENGTH_PENALTY.value)
    else:
        method = Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value)
    method.validate()
    return method


def encode_prompts(tokenizer, prompts: list[str], num_new: int, context: int):
    """Encode, each after the end-of-text mark that starts a document."""
    encoded = [[END_ID, *tokenizer.encode(prompt).ids] for prompt in prompts]
    longest = max(map(len, encoded))
    if num_new < 1:
        raise ValueError(f"--max_new_tokens is {num_new}; it must be at least 1")
    if longest + num_new > context:
        raise ValueError(
            f"the longest prompt has {longest} tokens and --max_new_tokens adds "
            f"{num_new}, more than the context of {context}; shorten one of them"
        )
    return encoded


class Inputs(NamedTuple):
    """What decoding begins from."""

    prompts: list[list[int]]
    source_BS: np.ndarray | None  # of a model with an encoder
    num_new: int


def encode_inputs(
    config: Experiment, tokenizer: Tokenizer, prompts: list[str], num_new: int
) -> Inputs:
    """Encode prompts, or sources where the data is pairs.

    Raises ValueError for those that are too long.
    """
    data = config.data
    context, sources = data.seq_len - data.source_len, None
    if data.source_len:
        sources = encode_sources(tokenizer, prompts, data.source_len)
        prompts, num_new = [""] * len(prompts), min(num_new, context - 1)
    return Inputs(encode_prompts(tokenizer, prompts, num_new, context), sources, num_new)


def continuations(
    task: Task,
    params: Params,
    tokenizer: Tokenizer,
    inputs: Inputs,
    method: Sampling | Beam,
    seed: int,
) -> list[str]:
    """Return what follows each prompt or source, all of them written at once."""
    new = generate(
        task, params, inputs.prompts, inputs.num_new, method, seed, inputs.source_BS
    )
    return tokenizer.decode_batch(new)


def main() -> None:
    with startup.user_errors():
        workdir = startup.workdir()
        prompts = read_prompts()
        method = decoding_method()
        batching = Batching(SLOTS.value, CHUNK.value)
        batching.validate()
        startup.start_jax()
        config, task, params, _, mesh = load_run(workdir, CHECKPOINT.value)
        tokenizer = load_tokenizer(workdir / "tokenizer.json")
        inputs = encode_inputs(config, tokenizer, prompts, NUM_NEW.value)
    if isinstance(method, Beam):
        texts = continuations(task, params, tokenizer, inputs, method, SEED.value)
    else:
        given = task, params, inputs.prompts, inputs.num_new, method, SEED.value
        new = generate_spread(*given, mesh, batching, inputs.source_BS)
        texts = tokenizer.decode_batch(new)
    if startup.is_main_process():
        for prompt, text in zip(prompts, texts, strict=True):
            print(text if config.data.source_len else prompt + text)
            if len(prompts) > 1:
                print("-" * 80)


if __name__ == "__main__":
    startup.run(main)
