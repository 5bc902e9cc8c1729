"""Decoding with a cache: greedy, temperature, top-k, top-p; or beam search (lm/beam.py).

All rows advance together, each at its own position. One pass of the model reads the
prompts, and one more pass gives each new token. A row's randomness depends only on the seed
and the row's index, so the other rows do not change its text.

Shapes: B batch, S source, P longest prompt, N new tokens, V vocabulary, k tokens kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.beam import Beam, beam_rows
from lm.task import Params, Task
from lm.vocabulary import END_ID


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.8  # divides the logits; 0: greedy
    top_k: int = 0  # keep the k likeliest; 0: all
    top_p: float = 1.0  # keep the likeliest that hold this share (Holtzman et al. 2020)

    def validate(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature is {self.temperature}; expected a number >= 0 (0: greedy)"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; expected >= 0 (0: all tokens)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected 0 < p <= 1")


def sample(logits_V: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """Draw one token, int32[]; of equally likely tokens top-k and top-p keep the first."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_V).astype(jnp.int32)
    vocab_size = logits_V.size
    num_kept = min(sampling.top_k or vocab_size, vocab_size)
    if num_kept == vocab_size and sampling.top_p == 1:
        tempered_V = tempered(logits_V, sampling.temperature)
        return jax.random.categorical(key, tempered_V).astype(jnp.int32)
    # Plain temperature, above, sorts nothing: sorting takes longer than all the rest.
    ranked_k, token_k = jax.lax.top_k(logits_V, num_kept)
    ranked_k = tempered(ranked_k, sampling.temperature)
    share_k = jax.nn.softmax(ranked_k)
    # Keep a token if the tokens before it hold less than top_p; always keep the likeliest.
    kept_k = (jnp.cumsum(share_k) - share_k < sampling.top_p).at[0].set(True)
    rank = jax.random.categorical(key, jnp.where(kept_k, ranked_k, -jnp.inf))
    return token_k[rank]


def tempered(logits_V: jax.Array, temperature: float) -> jax.Array:
    """Divide by the temperature, after a shift that makes the largest logit 0."""
    logits_V = logits_V.astype(jnp.float32)
    float32 = np.finfo(np.float32)
    representable = np.clip(temperature, float32.tiny, float32.max)
    return (logits_V - jnp.max(logits_V)) / representable


def generate(
    task: Task,
    params: Params,
    prompts: list[list[int]],
    num_new: int,
    method: Sampling | Beam,
    seed: int,
    source_BS: np.ndarray | None = None,
) -> list[list[int]]:
    """Continue each prompt by up to `num_new` tokens, ending at the end-of-text mark.

    A model with an encoder needs a source for each prompt. Raises ValueError as
    `check_inputs` does.
    """
    check_inputs(task, params, prompts, [num_new] * len(prompts), source_BS)
    method.validate()
    lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
    prompts_BP = np.zeros((len(prompts), lengths_B.max()), np.int32)
    for row, prompt in enumerate(prompts):
        prompts_BP[row, : len(prompt)] = prompt
    begin, decode = programs(task, num_new, method)
    cache, logits_BV = begin(params, prompts_BP, lengths_B, source_BS)
    new_BN = decode(params, cache, logits_BV, lengths_B, jax.random.key(seed))
    return [until_end(row) for row in np.asarray(new_BN).tolist()]


def until_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(END_ID)] if END_ID in tokens else tokens


@lru_cache(maxsize=8)
def programs(task: Task, num_new: int, method: Sampling | Beam):
    """Return the compiled functions that read prompts and continue them, for all calls."""
    rows = beam_rows if isinstance(method, Beam) else sample_rows
    return (
        jax.jit(partial(read_prompts, task, num_new)),
        jax.jit(partial(rows, task, num_new, method)),
    )


def check_inputs(
    task: Task,
    params: Params,
    prompts: list[list[int]],
    limits: Sequence[int],
    source_BS: np.ndarray | None,
) -> None:
    """Raise ValueError for prompts that the model cannot continue.

    `limits` has the number of tokens to add to each prompt.
    """
    if not prompts or not all(prompts):
        empty = [index for index, prompt in enumerate(prompts) if not prompt]
        raise ValueError(
            f"{len(prompts)} prompts were given, and those numbered {empty} have no token; "
            "give at least one prompt, and each one a token (the end-of-text mark begins a "
            "text)"
        )
    if min(limits) < 1:
        raise ValueError(f"num_new is {min(limits)}; it must be at least 1")
    longest = max(len(p) + num_new for p, num_new in zip(prompts, limits, strict=True))
    if task.context is not None and longest > task.context:
        raise ValueError(
            f"a prompt and its new tokens are {longest} tokens together, and the model's "
            f"context is {task.context}; shorten the prompt or num_new"
        )
    if (source_BS is None) != (task.encode is None):
        raise ValueError(
            "a model with an encoder needs sources, and this one was given none"
            if source_BS is None
            else "sources were given, but this model has no encoder that would read them"
        )
    check_tokens(vocabulary(task, params), prompts, source_BS)


def check_tokens(
    vocab_size: int, prompts: list[list[int]], source_BS: np.ndarray | None
) -> None:
    rows = prompts if source_BS is None else [*prompts, *source_BS]
    unknown = [t for row in rows for t in row if not 0 <= t < vocab_size]
    if unknown:
        raise ValueError(
            f"token {unknown[0]} is unknown to the model: its vocabulary has {vocab_size} "
            "tokens; encode the text with the run's own tokenizer"
        )


def vocabulary(task: Task, params: Params) -> int:
    """Return the number of tokens that the model knows."""

    def one_token(params: Params) -> jax.Array:
        zero = jnp.zeros((1, 1), jnp.int32)
        return task.decode(params, task.cache(1, 1), zero, zero[0])[0]

    return jax.eval_shape(one_token, params).shape[-1]


def read_prompts(task: Task, num_new: int, params, prompts_BP, lengths_B, source_BS):
    """Return the cache after sources and prompts, and logits_BV of the next token."""
    num_rows, longest = prompts_BP.shape
    cache = task.cache(num_rows, longest + num_new)
    if source_BS is not None:
        cache = task.encode(params, cache, source_BS)
    zeros_B = jnp.zeros(num_rows, jnp.int32)
    logits_BPV, cache = task.decode(params, cache, prompts_BP, zeros_B)
    return cache, logits_BPV[jnp.arange(num_rows), lengths_B - 1]


class Texts(NamedTuple):
    """Rows that are being continued, each at its own position."""

    cache: Any
    token_B: jax.Array  # the last token that was drawn; it is not in the cache yet
    position_B: jax.Array  # the position of token_B
    key_B: jax.Array
    drawn_B: jax.Array  # how many tokens have been drawn
    ended_B: jax.Array


def begin_texts(
    sampling: Sampling, cache, logits_BV: jax.Array, position_B: jax.Array, key_B: jax.Array
) -> Texts:
    """Draw the first token of each row; the prompts are in the cache already."""
    drawn_B = jnp.zeros_like(position_B)
    token_B = draw(sampling, logits_BV, key_B, drawn_B)
    return Texts(cache, token_B, position_B, key_B, drawn_B + 1, token_B == END_ID)


def draw(sampling: Sampling, logits_BV, key_B, drawn_B) -> jax.Array:
    key_B = jax.vmap(jax.random.fold_in)(key_B, drawn_B)
    return jax.vmap(partial(sample, sampling=sampling))(logits_BV, key_B)


def advance(
    task: Task, num_tokens: int, sampling: Sampling, params: Params, texts: Texts
) -> tuple[Texts, jax.Array]:
    """Draw `num_tokens` more tokens for each row.

    Returns also tokens_BN, those that were added to the cache. After the end-of-text mark
    of a row come more such marks.
    """

    def body(texts: Texts, _):
        token_B1 = texts.token_B[:, None]
        logits_B1V, cache = task.decode(params, texts.cache, token_B1, texts.position_B)
        token_B = draw(sampling, logits_B1V[:, 0], texts.key_B, texts.drawn_B)
        token_B = jnp.where(texts.ended_B, END_ID, token_B)
        longer = texts._replace(
            cache=cache,
            token_B=token_B,
            position_B=texts.position_B + 1,
            drawn_B=texts.drawn_B + 1,
            ended_B=texts.ended_B | (token_B == END_ID),
        )
        return longer, texts.token_B

    texts, tokens_NB = jax.lax.scan(body, texts, length=num_tokens)
    return texts, tokens_NB.T


def text_keys(seed_key: jax.Array, rows_B) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(seed_key, rows_B)


def sample_rows(
    task: Task, num_new: int, sampling: Sampling, params, cache, logits_BV, lengths_B, key
) -> jax.Array:
    """Return tokens_BN; after the end-of-text mark of a row come more such marks."""
    keys_B = text_keys(key, jnp.arange(len(logits_BV)))
    texts = begin_texts(sampling, cache, logits_BV, lengths_B, keys_B)
    texts, tokens_BN = advance(task, num_new - 1, sampling, params, texts)
    return jnp.concatenate([tokens_BN, texts.token_B[:, None]], 1)
