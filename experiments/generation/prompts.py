"""From prompts, or sources, to what decoding begins from, and on to texts."""

from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from configs.base import Experiment
from lm.data.rows.pairs import encode_sources
from lm.decoding import Beam, Sampling, generate
from lm.task import Params, Task
from lm.vocabulary import END_ID


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
