"""Classes of the tokens in Python source, found by Pygments.

A token of the vocabulary has the class of its first character that is not white space. A
token of nothing but white space has the class `space`. What is no Python is `other`.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from pygments import token
from pygments.lexers.python import PythonLexer
from tokenizers import Tokenizer

from lm.data.tokenizer import encode_documents, split_text

CLASSES = ("other", "space", "keyword", "name", "number", "string", "operator", "comment")
KINDS = {  # of Pygments; the first that holds a token decides
    token.Operator.Word: "keyword",
    token.Keyword: "keyword",
    token.Name: "name",
    token.Number: "number",
    token.String: "string",
    token.Operator: "operator",
    token.Punctuation: "operator",
    token.Comment: "comment",
}


@functools.cache
def class_of(kind: token._TokenType) -> int:
    names = (name for whole, name in KINDS.items() if kind in whole)
    return CLASSES.index(next(names, "other"))


def character_classes(text: str) -> np.ndarray:
    """Return the class of each character, int8[characters], as indices into CLASSES."""
    found = np.zeros(len(text), np.int8)
    for start, kind, part in PythonLexer().get_tokens_unprocessed(text):
        found[start : start + len(part)] = class_of(kind)
    return found


def token_classes(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Return the class of each token and of both end-of-text marks, int8[tokens + 2]."""
    of_character = character_classes(text)
    other, space = CLASSES.index("other"), CLASSES.index("space")
    classes, begin = [other], 0
    for chunk in split_text(text):  # as the ids are made
        for start, end in tokenizer.encode(chunk).offsets:
            piece = chunk[start:end]
            first = begin + start + len(piece) - len(piece.lstrip())
            classes.append(of_character[first] if piece.strip() else space)
        begin += len(chunk)
    return np.array([*classes, other], np.int8)


def usual_classes(texts: Iterable[str], tokenizer: Tokenizer) -> np.ndarray:
    """Return int32[vocabulary], the class that each token has most often in the texts."""
    counts = np.zeros((tokenizer.get_vocab_size(), len(CLASSES)), np.int64)
    texts, again = itertools.tee(texts)
    for ids, text in zip(encode_documents(tokenizer, texts), again, strict=True):
        np.add.at(counts, (ids[1:-1], token_classes(text, tokenizer)[1:-1]), 1)
    return counts.argmax(1).astype(np.int32)


def encode_classes(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Yield the classes of each text, one for each id that encode_documents yields."""
    for text in texts:
        yield token_classes(text, tokenizer).astype(np.int32)
