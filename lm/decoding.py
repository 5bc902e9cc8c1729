"""Decoding with a cache: greedy, temperature, top-k, top-p; beam search.

All rows advance together, each at its own position; the prompt is taken in one pass, and
each new token costs one. A row's randomness depends on its index alone, so the same prompt
gives the same text in any batch.

Beam search keeps the K best texts, ended or not, by their log likelihood over
((5 + length) / 6) ** length_penalty (Wu et al. 2016, 7), the end mark being one of a text's
tokens. A row is done when no text that goes on can become better than the best that has
ended; where none has, the best that goes on is taken. A beam of 1 is greedy decoding.

Shapes: B batch, S source, P longest prompt, N new tokens, V vocabulary, K beams.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.task import Params, Task
from lm.vocabulary import END_ID


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.8  # 0: greedy
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


MOST_PENALTY = 8  # beyond it, float32 does not hold the penalty of 400,000 tokens


@dataclass(frozen=True)
class Beam:
    size: int = 4  # K
    length_penalty: float = 0.6  # 0: none; more favours longer texts

    def validate(self) -> None:
        if self.size < 1:
            raise ValueError(f"the beam's size is {self.size}; expected at least 1")
        if not 0 <= self.length_penalty <= MOST_PENALTY:
            raise ValueError(
                f"length_penalty is {self.length_penalty}; expected 0 to {MOST_PENALTY}"
            )


def sample(logits_V: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """Draw one token, int32[]; of equally likely ones, top-k and top-p keep the first."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_V).astype(jnp.int32)
    vocab_size = logits_V.size
    num_kept = min(sampling.top_k or vocab_size, vocab_size)
    if num_kept == vocab_size and sampling.top_p == 1:
        tempered_V = tempered(logits_V, sampling.temperature)
        return jax.random.categorical(key, tempered_V).astype(jnp.int32)
    # Only here is anything sorted: it takes longer than all the rest.
    ranked_k, token_k = jax.lax.top_k(logits_V, num_kept)
    ranked_k = tempered(ranked_k, sampling.temperature)
    share_k = jax.nn.softmax(ranked_k)
    # What lies before a token decides; the likeliest, with nothing before it, is kept.
    kept_k = (jnp.cumsum(share_k) - share_k < sampling.top_p).at[0].set(True)
    rank = jax.random.categorical(key, jnp.where(kept_k, ranked_k, -jnp.inf))
    return token_k[rank]


def tempered(logits_V: jax.Array, temperature: float) -> jax.Array:
    """Divide by the temperature: the largest logit is 0, however small the temperature."""
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

    A model with an encoder needs a source for each. Raises what `check_inputs` does.
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
    """Return what reads prompts and what continues them; compiled once for all calls."""
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
    """Raise ValueError for what cannot be continued; `limits` are the tokens to add.

    No prompt, or one without a token, or nothing to add; texts longer than the context;
    tokens that the vocabulary does not have; sources where there is no encoder, or none
    where there is one.
    """
    if not prompts or not all(prompts):
        empty = [index for index, prompt in enumerate(prompts) if not prompt]
        raise ValueError(
            f"of {len(prompts)} prompts those numbered {empty} have no token; give each at "
            "least one (the end-of-text mark begins a text)"
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
    """Return how many tokens the model knows."""

    def one_token(params: Params) -> jax.Array:
        zero = jnp.zeros((1, 1), jnp.int32)
        return task.decode(params, task.cache(1, 1), zero, zero[0])[0]

    return jax.eval_shape(one_token, params).shape[-1]


def read_prompts(task: Task, num_new: int, params, prompts_BP, lengths_B, source_BS):
    """Return the cache after sources and prompts, and logits_BV of what comes next."""
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
    token_B: jax.Array  # the last one drawn; the cache does not know it yet
    position_B: jax.Array  # where it goes
    key_B: jax.Array
    drawn_B: jax.Array  # how many tokens have been drawn
    ended_B: jax.Array


def begin_texts(
    sampling: Sampling, cache, logits_BV: jax.Array, position_B: jax.Array, key_B: jax.Array
) -> Texts:
    """Draw the first token of each row, whose prompt the cache has read."""
    drawn_B = jnp.zeros_like(position_B)
    token_B = draw(sampling, logits_BV, key_B, drawn_B)
    return Texts(cache, token_B, position_B, key_B, drawn_B + 1, token_B == END_ID)


def draw(sampling: Sampling, logits_BV, key_B, drawn_B) -> jax.Array:
    key_B = jax.vmap(jax.random.fold_in)(key_B, drawn_B)
    return jax.vmap(partial(sample, sampling=sampling))(logits_BV, key_B)


def advance(
    task: Task, num_tokens: int, sampling: Sampling, params: Params, texts: Texts
) -> tuple[Texts, jax.Array]:
    """Draw so many tokens more for each row; return also those that the cache now knows.

    These are tokens_BN; after a row's end-of-text mark come more of them.
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
    """Return tokens_BN; after a row's end-of-text mark come more of them."""
    keys_B = text_keys(key, jnp.arange(len(logits_BV)))
    texts = begin_texts(sampling, cache, logits_BV, lengths_B, keys_B)
    texts, tokens_BN = advance(task, num_new - 1, sampling, params, texts)
    return jnp.concatenate([tokens_BN, texts.token_B[:, None]], 1)


class Search(NamedTuple):
    """What beam search knows after some steps; the best text of a row comes first."""

    cache: Any  # of B x K rows
    logits_BKV: jax.Array
    log_p_BK: jax.Array
    tokens_BKN: jax.Array
    length_BK: jax.Array
    ended_BK: jax.Array


def beam_rows(
    task: Task, num_new: int, beam: Beam, params, cache, logits_BV, lengths_B, key
) -> jax.Array:
    """Return tokens_BN of the best text of each row; after its end come more end marks.

    Nothing is drawn: the key is of no use.
    """
    num_rows, num_beams = len(logits_BV), beam.size

    def body(carry):
        step, search = carry
        search, parent_BK = extend(beam, search, step)
        rows = (jnp.arange(num_rows)[:, None] * num_beams + parent_BK).ravel()
        cache = jax.tree.map(lambda x: x[rows], search.cache)
        token = search.tokens_BKN[:, :, step].reshape(-1, 1)
        position = jnp.repeat(lengths_B, num_beams) + step
        logits, cache = task.decode(params, cache, token, position)
        logits_BKV = logits.reshape(num_rows, num_beams, -1)
        return step + 1, search._replace(logits_BKV=logits_BKV, cache=cache)

    def unfinished(carry):
        step, search = carry
        now_BK = search.log_p_BK / penalty(beam, search.length_BK)
        hoped_BK = search.log_p_BK / penalty(beam, num_new)
        ended_B = jnp.max(jnp.where(search.ended_BK, now_BK, -jnp.inf), 1)
        hoped_B = jnp.max(jnp.where(search.ended_BK, -jnp.inf, hoped_BK), 1)
        return (step < num_new) & jnp.any(hoped_B > ended_B)

    start = Search(
        cache=jax.tree.map(lambda x: jnp.repeat(x, num_beams, axis=0), cache),
        logits_BKV=jnp.repeat(logits_BV[:, None], num_beams, axis=1),
        # All beams are the same text yet: one of them is enough.
        log_p_BK=jnp.full((num_rows, num_beams), -jnp.inf).at[:, 0].set(0.0),
        tokens_BKN=jnp.full((num_rows, num_beams, num_new), END_ID, jnp.int32),
        length_BK=jnp.zeros((num_rows, num_beams), jnp.int32),
        ended_BK=jnp.zeros((num_rows, num_beams), bool),
    )
    _, search = jax.lax.while_loop(unfinished, body, (0, start))
    best_B = jnp.argmax(search.ended_BK, 1)  # the first that has ended; else the first
    return search.tokens_BKN[jnp.arange(num_rows), best_B]


def penalty(beam: Beam, length) -> jax.Array:
    return ((5.0 + length) / 6.0) ** beam.length_penalty


def extend(beam: Beam, search: Search, step) -> tuple[Search, jax.Array]:
    """Choose each row's texts of one more token; return also parent_BK, what they were."""
    num_rows, num_beams, vocab_size = search.logits_BKV.shape
    ended_BK1 = search.ended_BK[:, :, None]
    # A text that has ended goes on in one way, which costs nothing.
    stays_V = jnp.where(jnp.arange(vocab_size) == END_ID, 0.0, -jnp.inf)
    log_p_BKV = jax.nn.log_softmax(search.logits_BKV.astype(jnp.float32))
    log_p_BKV = search.log_p_BK[:, :, None] + jnp.where(ended_BK1, stays_V, log_p_BKV)
    length_BK = jnp.where(search.ended_BK, search.length_BK, step + 1)
    ranked_BKV = log_p_BKV / penalty(beam, length_BK)[:, :, None]
    _, index_BK = jax.lax.top_k(ranked_BKV.reshape(num_rows, -1), num_beams)
    parent_BK, token_BK = index_BK // vocab_size, index_BK % vocab_size
    tokens_BKN = jnp.take_along_axis(search.tokens_BKN, parent_BK[:, :, None], 1)
    search = search._replace(
        log_p_BK=jnp.take_along_axis(log_p_BKV.reshape(num_rows, -1), index_BK, 1),
        tokens_BKN=tokens_BKN.at[:, :, step].set(token_BK),
        length_BK=jnp.take_along_axis(length_BK, parent_BK, 1),
        ended_BK=token_BK == END_ID,
    )
    return search, parent_BK
