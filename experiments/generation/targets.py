"""Write the targets of held-out sources, and score them by BLEU and chrF.

For comparison, two outputs that need no model are scored as well: the source itself, and
the commonest target of the training rows. sacrebleu (Post 2018) computes the scores.

Shapes: R rows, T tokens of a row, S tokens of its source, B rows decoded at once.
"""

import collections
import importlib.util

import numpy as np
from tokenizers import Tokenizer

from configs.base import Experiment
from experiments.generation.prompts import Inputs, continuations
from lm.beam import Beam
from lm.data.prepare import Data
from lm.data.rows.pairs import split_rows
from lm.decoding import Sampling
from lm.task import Params, Task
from lm.vocabulary import END_ID

BATCH = 64  # B

Scores = dict[str, dict[str, float]]  # origin of the texts -> metric -> 0 to 100


def check_scorer() -> None:
    """Raise ValueError if sacrebleu is not installed, before any text is written."""
    if importlib.util.find_spec("sacrebleu") is None:
        raise ValueError(
            "BLEU and chrF need sacrebleu; pip install -r requirements-pairs.txt"
        )


def score(
    config: Experiment,
    task: Task,
    params: Params,
    data: Data,
    num: int,
    method: Sampling | Beam,
) -> tuple[Scores, list[tuple[str, str, str]]]:
    """Score the first `num` validation pairs (0: all), in the order of evaluations.

    Returns the scores, and each pair's source, reference and output.
    """
    source_len, tokenizer = config.data.source_len, data.tokenizer
    order = np.random.default_rng(0).permutation(len(data.validation.tokens))
    tokens_RT = data.validation.tokens[order[: num or None]]
    sources, references = texts_of(tokens_RT, source_len, tokenizer)
    sources_RS = tokens_RT[:, :source_len].astype(np.int32)
    num_new = config.data.seq_len - source_len
    written = write_targets(task, params, sources_RS, num_new, tokenizer, method)
    _, training = texts_of(data.train.tokens, source_len, tokenizer)
    ((commonest, _),) = collections.Counter(training).most_common(1)
    outputs = {
        "model": written,
        "copy of the source": sources,
        "commonest target": [commonest] * len(references),
    }
    table = {name: scores(texts, references) for name, texts in outputs.items()}
    return table, list(zip(sources, references, written, strict=True))


def texts_of(
    tokens_RT: np.ndarray, source_len: int, tokenizer: Tokenizer
) -> tuple[list[str], list[str]]:
    """Return the sources and the targets of rows."""
    sources, targets = zip(*split_rows(tokens_RT, source_len), strict=True)
    return tokenizer.decode_batch(list(sources)), tokenizer.decode_batch(list(targets))


def write_targets(
    task: Task,
    params: Params,
    sources_RS: np.ndarray,
    num_new: int,
    tokenizer: Tokenizer,
    method: Sampling | Beam,
) -> list[str]:
    """Return the model's target of each source, at most `num_new` tokens."""
    outputs: list[str] = []
    for start in range(0, len(sources_RS), BATCH):
        some_BS = sources_RS[start : start + BATCH]
        # The last batch is padded, so that one program serves all.
        filled_BS = np.pad(some_BS, ((0, BATCH - len(some_BS)), (0, 0)))
        inputs = Inputs([[END_ID]] * BATCH, filled_BS, num_new)
        texts = continuations(task, params, tokenizer, inputs, method, seed=0)
        outputs += texts[: len(some_BS)]
    return outputs


def scores(outputs: list[str], references: list[str]) -> dict[str, float]:
    """Return corpus BLEU and chrF with the defaults of sacrebleu."""
    import sacrebleu  # optional, so not imported at the top

    return {
        "bleu": sacrebleu.corpus_bleu(outputs, [references]).score,
        "chrf": sacrebleu.corpus_chrf(outputs, [references]).score,
    }
