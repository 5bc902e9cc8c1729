"""The tokenizer of another model, from its tokenizer.json.

Every model here takes token 0 for the end-of-text mark. So the end token of the file and
its token 0 change places; all other ids stay.
"""

import hashlib
import json
import os
import pathlib
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from lm.data.tokenizer import as_text, token_bytes
from lm.vocabulary import END_ID

# What a tokenizer must give back: tabs, two spaces, accents, and signs of several bytes.
PROBE = "def f(x):\n\treturn x  # naïve Größe, 漢字 🎉\n\n"


def pretrained_tokenizer(path: str, end_token: str, vocab_size: int) -> Tokenizer:
    """Load a tokenizer.json; ValueError if it cannot be used or has another size."""
    file = pathlib.Path(os.path.expanduser(path))
    made, ids = opened(file)
    if made["model"]["type"] != "BPE":
        raise ValueError(f"{file} has a {made['model']['type']} model; give one of BPE")
    size = max(ids.values()) + 1
    if size != vocab_size:
        raise ValueError(
            f"{file} has {size} tokens, and data.vocab_size is {vocab_size}; set it to "
            f"{size}"
        )
    if len(ids) != size:
        raise ValueError(f"{file} has {len(ids)} tokens but ids up to {size - 1}")
    tokenizer = with_end_first(made, ids, end_token or find_end(file, made))
    check_round_trip(file, tokenizer)
    return tokenizer


def opened(file: pathlib.Path) -> tuple[dict, dict[str, int]]:
    """Return a tokenizer.json as the library writes it today, and the id of each token.

    Older files leave out parts, such as the type of the model.
    """
    text = json.dumps(read_json(file))
    try:
        found = Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exceptions
        raise ValueError(f"{file} is not a tokenizer.json ({error})") from None
    return json.loads(found.to_str()), found.get_vocab()


class Found(NamedTuple):
    end_token: str
    end_id: int  # before it changes places with token 0
    size: int


def found_in(path: pathlib.Path, end_token: str, end_id: int | None) -> Found:
    """Return what a tokenizer.json has; ValueError if its end token is not known.

    The end token is the one given, or that of `find_end`, or the one that has `end_id`.
    """
    made, ids = opened(path)
    named = [token for token, index in ids.items() if index == end_id]
    try:
        end_token = end_token or find_end(path, made)
    except ValueError:
        if not named:
            raise
        (end_token,) = named
    if end_token not in ids:
        raise ValueError(f"the end token {end_token!r} is not in {path}")
    return Found(end_token, ids[end_token], max(ids.values()) + 1)


def tokenizer_identity(path: str, end_token: str) -> dict[str, str]:
    """Return what decides the ids: the files' text, and the end token."""
    file = pathlib.Path(os.path.expanduser(path))
    beside = file.with_name("tokenizer_config.json")
    texts = [json.dumps(read_json(each)) for each in (file, beside) if each.exists()]
    digest = hashlib.sha256("".join(texts).encode()).hexdigest()
    return {"tokenizer_file": digest, "end_token": end_token}


def read_json(file: pathlib.Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"data.tokenizer_file {file} cannot be read: {error}") from None


def find_end(file: pathlib.Path, made: dict) -> str:
    """Return the end token by tokenizer_config.json beside it, or the only special."""
    beside = file.with_name("tokenizer_config.json")
    if beside.exists() and (end := read_json(beside).get("eos_token")):
        return end["content"] if isinstance(end, dict) else end
    special = [each["content"] for each in made["added_tokens"] if each["special"]]
    if len(special) == 1:
        return special[0]
    raise ValueError(
        f"{file} does not say which token ends a text; set data.end_token to one of its "
        f"special tokens: {', '.join(special) or 'it has none'}"
    )


def with_end_first(made: dict, ids: dict[str, int], end_token: str) -> Tokenizer:
    if end_token not in ids:
        raise ValueError(f"the end token {end_token!r} is not in data.tokenizer_file")
    (first,) = (token for token, index in ids.items() if index == 0)
    ids[first], ids[end_token] = ids[end_token], END_ID
    # An added token takes its id from here; without it the library would count on.
    made["model"]["vocab"] = ids
    others = [each for each in made["added_tokens"] if each["content"] != end_token]
    end = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    end |= {"id": END_ID, "content": end_token, "special": True}
    made["added_tokens"] = [end, *(each | {"id": ids[each["content"]]} for each in others)]
    # Marks before and after a text are ours to set, and rows are cut by packing.
    made |= {"post_processor": None, "truncation": None, "padding": None}
    return as_text(Tokenizer.from_str(json.dumps(made)))


def check_round_trip(file: pathlib.Path, tokenizer: Tokenizer) -> None:
    """Raise ValueError if a text does not come back, or does not have its tokens' bytes.

    Those like sentencepiece write a space before every text, which counts as one byte, and
    take U+2581 for a space.
    """
    (end,) = (token for token, i in tokenizer.get_vocab().items() if i == END_ID)
    for text in (PROBE, f"{PROBE}{end} {PROBE}"):
        ids = tokenizer.encode(text).ids
        surplus = token_bytes(tokenizer)[np.array(ids)].sum() - len(text.encode())
        if tokenizer.decode(ids) != text or surplus not in (0, 1) or END_ID in ids:
            raise ValueError(
                f"{file} does not give back every text: {text!r} becomes "
                f"{tokenizer.decode(ids)!r}; give a tokenizer that keeps all bytes, such "
                "as a byte-level one"
            )
