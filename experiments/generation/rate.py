"""How fast a model generates."""

import time

from tokenizers import Tokenizer

from lm.decoding import Sampling, generate
from lm.task import Params, Task
from lm.vocabulary import END_ID

ROWS, NEW_TOKENS = 8, 64  # texts at once and new tokens of the timed generation


def generation_rate(task: Task, params: Params, tokenizer: Tokenizer) -> float:
    """Return generated tokens a second, without the time of compilation."""
    prompt = [END_ID, *tokenizer.encode("def ").ids]

    def once() -> float:
        start = time.perf_counter()
        generate(task, params, [prompt] * ROWS, NEW_TOKENS, Sampling(0.0), 0)
        return time.perf_counter() - start

    once()
    return ROWS * NEW_TOKENS / min(once() for _ in range(3))
