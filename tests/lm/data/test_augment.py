"""Augmentation: how much is replaced, by what; it depends on three numbers alone."""

import numpy as np
import pytest

from lm.data.rows.augment import KINDS, MASK_ID, AugmentConfig, damaged, span_mask
from lm.data.tokenizer import train_tokenizer
from lm.vocabulary import END_ID

TOKENS = np.random.default_rng(0).integers(300, 400, 4000).astype(np.uint16)
TOKENS[::50] = END_ID


@pytest.mark.parametrize("kind", KINDS)
def test_the_wanted_share_is_replaced_and_marks_stay(kind):
    config = AugmentConfig(kind, rate=0.2)
    found = damaged(config, TOKENS, 0, 1, 2)
    assert found.dtype == TOKENS.dtype
    assert ((found == END_ID) == (TOKENS == END_ID)).all()
    # A replacement may equal what it replaces: once in 100.
    assert abs((found != TOKENS).mean() - 0.2) < 0.02
    changed = set(found[found != TOKENS].tolist())
    assert changed == {MASK_ID} if kind == "span_corruption" else changed <= set(TOKENS)
    same = damaged(config, TOKENS, 0, 1, 2)
    assert (found == same).all()
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert (damaged(config, TOKENS, *other) != found).any()


def test_spans_have_the_wanted_number_and_length():
    rng = np.random.default_rng(0)
    for length, rate, mean in [(100, 0.15, 3), (256, 0.5, 8), (7, 0.9, 1), (2, 0.01, 3)]:
        mask = span_mask(length, rate, mean, rng)
        noise = min(max(round(length * rate), 1), length - 1)
        assert mask.shape == (length,) and mask.sum() == noise
        runs = np.flatnonzero(np.diff(mask.astype(int)) == 1).size
        assert runs == min(max(round(noise / mean), 1), noise, length - noise)


def test_no_text_holds_the_mask():
    tokenizer = train_tokenizer("bpe", ["ÿ þ naïve ¿qué? \u07ff \U0010ffff"] * 9, 300)
    assert MASK_ID == tokenizer.token_to_id("ÿ")
    ids = tokenizer.encode("ÿ \u07ff \uffff \U0010ffff").ids
    assert MASK_ID not in ids
