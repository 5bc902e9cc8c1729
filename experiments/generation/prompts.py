"""Encode prompts or sources for decoding, and decode the tokens to texts."""

import pathlib
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from configs.base import Experiment
from lm.beam import Beam
from lm.data.rows.pairs import encode_sources
from lm.data.sources.reading import read_text
from lm.decoding import Sampling, generate
from lm.task import Params, Task
from lm.vocabulary import END_ID


class Inputs(NamedTuple):
    """The inputs of decoding."""

    prompts: list[list[int]]
    source_BS: np.ndarray | None  # only for a model with an encoder
    num_new: int


def read_prompts(file: pathlib.Path) -> list[str]:
    """Read a file with one prompt on each line; ValueError if it has none.

    A line ends with LF or CR LF. A prompt may contain other characters at which
    str.splitlines would cut, such as a form feed.
    """
    if file.is_dir() or not file.exists():
        found = "a folder" if file.is_dir() else "missing"
        raise ValueError(
            f"--prompts_file={file} is {found}; give a file with one prompt a line"
        )
    text = read_text(file)
    if not text:
        raise ValueError(f"--prompts_file={file} is empty; write a prompt a line into it")
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def encode_inputs(
    config: Experiment, tokenizer: Tokenizer, prompts: list[str], num_new: int
) -> Inputs:
    """Encode prompts, or sources where the data is pairs.

    Raises ValueError for those that are too long or not UTF-8.
    """
    if num_new < 1:
        raise ValueError(f"--max_new_tokens is {num_new}; it must be at least 1")
    check_utf8(prompts)
    data = config.data
    context = data.seq_len - data.source_len
    if not data.source_len:
        context = getattr(config.model, "context", 0) or context
        return Inputs(encode_prompts(tokenizer, prompts, num_new, context), None, num_new)
    source_BS = encode_sources(tokenizer, prompts, data.source_len)
    # A target begins with the end-of-text mark, which takes one token of the context.
    return Inputs([[END_ID]] * len(prompts), source_BS, min(num_new, context - 1))


def check_utf8(prompts: list[str]) -> None:
    """Raise ValueError for prompts with bytes that are not UTF-8."""
    for prompt in prompts:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the prompt {prompt[:40]!r} is not UTF-8 after {error.start} letters; "
                "convert it, for example with iconv -t UTF-8"
            ) from None


def encode_prompts(
    tokenizer: Tokenizer, prompts: list[str], num_new: int, context: int
) -> list[list[int]]:
    """Encode prompts, each after the end-of-text mark that starts a document."""
    encoded = [[END_ID, *tokenizer.encode(prompt).ids] for prompt in prompts]
    longest = max(map(len, encoded))
    if longest + num_new > context:
        raise ValueError(
            f"the longest prompt has {longest} tokens and --max_new_tokens adds "
            f"{num_new}, more than the context of {context}; shorten one of them"
        )
    return encoded


def continuations(
    task: Task,
    params: Params,
    tokenizer: Tokenizer,
    inputs: Inputs,
    method: Sampling | Beam,
    seed: int,
) -> list[str]:
    """Return the continuation of each prompt, or the target of each source."""
    new = generate(
        task, params, inputs.prompts, inputs.num_new, method, seed, inputs.source_BS
    )
    return tokenizer.decode_batch(new)
