"""Write the targets of held-out sources, and score them by BLEU and chrF.

Beside the model, two outputs that need none: the source itself, and the commonest target of
the training rows. By sacrebleu (Post 2018): pip install -r requirements-pairs.txt.
"""

import collections

import numpy as np
from tokenizers import Tokenizer

from configs.base import Experiment
from lm.data.prepare import Data
from lm.data.rows.pairs import split_rows
from lm.decoding import Beam, Sampling, generate
from lm.task import Params, Task
from lm.vocabulary import END_ID

BATCH = 64  # pairs decoded at once


def texts_of(tokens_RT: np.ndarray, source_len: int, tokenizer: Tokenizer):
    """Return the sources and the targets of rows."""
    sides = zip(*split_rows(tokens_RT, source_len), strict=True)
    return [tokenizer.decode_batch(list(side)) for side in sides]


def write_targets(
    config: Experiment,
    task: Task,
    params: Params,
    tokens_RT: np.ndarray,
    tokenizer: Tokenizer,
    method: Sampling | Beam,
) -> list[str]:
    source_len, outputs = config.data.source_len, []
    sources_RS = tokens_RT[:, :source_len].astype(np.int32)
    num_new = config.data.seq_len - source_len
    for start in range(0, len(sources_RS), BATCH):
        some_BS = sources_RS[start : start + BATCH]
        # Filled up, so that one program serves all.
        filled_BS = np.pad(some_BS, ((0, BATCH - len(some_BS)), (0, 0)))
        prompts = [[END_ID]] * BATCH
        new = generate(task, params, prompts, num_new, method, 0, filled_BS)
        outputs += tokenizer.decode_batch(new[: len(some_BS)])
    return outputs


def scores(outputs: list[str], references: list[str]) -> dict[str, float]:
    """Return corpus BLEU and chrF, 0 to 100, as sacrebleu has them by default."""
    import sacrebleu

    return {
        "bleu": sacrebleu.corpus_bleu(outputs, [references]).score,
        "chrf": sacrebleu.corpus_chrf(outputs, [references]).score,
    }


def score(
    config: Experiment, task: Task, params: Params, data: Data, num: int, method
) -> tuple[dict[str, dict[str, float]], list[tuple[str, str, str]]]:
    """Return the table name -> scores, and each pair's source, reference and output."""
    source_len, tokenizer = config.data.source_len, data.tokenizer
    tokens_RT = data.validation.tokens
    order = np.random.default_rng(0).permutation(len(tokens_RT))  # as in evaluations
    tokens_RT = tokens_RT[order[: num or None]]
    sources, references = texts_of(tokens_RT, source_len, tokenizer)
    _, training = texts_of(data.train.tokens, source_len, tokenizer)
    ((commonest, _),) = collections.Counter(training).most_common(1)
    written = write_targets(config, task, params, tokens_RT, tokenizer, method)
    outputs = {
        "model": written,
        "copy of the source": sources,
        "commonest target": [commonest] * len(references),
    }
    table = {name: scores(texts, references) for name, texts in outputs.items()}
    return table, list(zip(sources, references, written, strict=True))
