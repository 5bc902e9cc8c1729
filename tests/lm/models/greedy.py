"""Greedy decoding, a token at a time, against one full pass over what it wrote."""

import jax
import numpy as np

from lm.decoding import Sampling, generate
from lm.task import Task
from lm.vocabulary import END_ID


def assert_greedy(
    task: Task, params, prompts: list[list[int]], num_new: int, write=generate
) -> None:
    """Prompts of several lengths go together: what pads a short one must leave no trace.

    `write` takes what `generate` does.
    """
    new = write(task, params, prompts, num_new, Sampling(temperature=0), seed=0)
    texts = [
        [*p, *n, END_ID][: len(p) + num_new] for p, n in zip(prompts, new, strict=True)
    ]
    tokens = np.zeros((len(texts), max(map(len, texts)) + 1), np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    batch = {"tokens": tokens, "segments": np.ones_like(tokens)}
    batch["row"] = np.arange(len(texts))
    likeliest = np.asarray(jax.jit(task.logits)(params, batch)).argmax(-1)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        assert (
            text[len(prompt) :] == likeliest[row, len(prompt) - 1 : len(text) - 1].tolist()
        )
