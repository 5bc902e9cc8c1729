"""Classes of the tokens in Python source, found by Python's own tokenizer.

A token of the vocabulary has the class of its first character that is not white space. A
token of nothing but white space has the class `space`. Where Python's tokenizer gives up (a
template, the syntax of another version), the rest of the text is `other`.
"""

import io
import keyword
import tokenize
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer

CLASSES = ("other", "space", "keyword", "name", "number", "string", "operator", "comment")
KINDS = {
    tokenize.NUMBER: "number",
    tokenize.STRING: "string",
    tokenize.OP: "operator",
    tokenize.COMMENT: "comment",
}
# Python 3.12 and later split formatted strings into several tokens.
for part in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END"):
    if hasattr(tokenize, part):
        KINDS[getattr(tokenize, part)] = "string"


def character_classes(text: str) -> np.ndarray:
    """Return the class of each character, int8[characters], as indices into CLASSES."""
    found = np.zeros(len(text), np.int8)
    lines = text.splitlines(keepends=True)
    starts = np.cumsum([0, *map(len, lines)])
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME:
                is_keyword = keyword.iskeyword(token.string)
                kind = "keyword" if is_keyword else "name"
            elif token.type in KINDS:
                kind = KINDS[token.type]
            else:
                continue
            (row, column), (end_row, end_column) = token.start, token.end
            if max(row, end_row) > len(lines):
                continue
            first, last = starts[row - 1] + column, starts[end_row - 1] + end_column
            found[first:last] = CLASSES.index(kind)
    except (tokenize.TokenError, SyntaxError):
        pass  # keep the classes that were found so far
    return found


def token_classes(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Return the class of each token and of both end-of-text marks, int8[tokens + 2]."""
    of_character = character_classes(text)
    classes = [CLASSES.index("other")]
    for start, end in tokenizer.encode(text).offsets:
        inside = start + len(text[start:end]) - len(text[start:end].lstrip())
        space = inside >= end
        classes.append(CLASSES.index("space") if space else of_character[inside])
    return np.array([*classes, CLASSES.index("other")], np.int8)


def usual_classes(texts: Iterable[str], tokenizer: Tokenizer) -> np.ndarray:
    """Return int32[vocabulary], the class that each token has most often in the texts."""
    counts = np.zeros((tokenizer.get_vocab_size(), len(CLASSES)), np.int64)
    for text in texts:
        ids = tokenizer.encode(text).ids
        np.add.at(counts, (ids, token_classes(text, tokenizer)[1:-1]), 1)
    return counts.argmax(1).astype(np.int32)


def encode_classes(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Yield the classes of each text, one for each id that encode_documents yields."""
    for text in texts:
        yield token_classes(text, tokenizer).astype(np.int32)
