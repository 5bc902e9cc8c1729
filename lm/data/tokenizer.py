"""Byte-level BPE: any text in, the same text out (Sennrich et al. 2016; GPT-2's bytes).

A vocabulary of 257 (256 bytes and the end-of-text mark) is the byte tokenizer.
"""

import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
END_ID = 0
MIN_VOCAB_SIZE = 257
CHUNK = 1 << 20  # characters encoded at once: an encoding takes 100 times its text


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return as_text(tokenizer)


def load_tokenizer(file: pathlib.Path) -> Tokenizer:
    return as_text(Tokenizer.from_file(str(file)))


def as_text(tokenizer: Tokenizer) -> Tokenizer:
    """Make "<|endoftext|>" inside a document plain text, not the end of it."""
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode_documents(
    tokenizer: Tokenizer, documents: Iterable[str], batch: int = 256
) -> Iterator[np.ndarray]:
    """Yield each document's ids, END_ID before and after, on all cores."""

    def encode(texts: list[str]) -> Iterator[np.ndarray]:
        chunks = [list(split_text(text)) for text in texts]
        encoded = iter(tokenizer.encode_batch_fast([c for cs in chunks for c in cs]))
        for parts in chunks:
            ids = [END_ID]
            for _ in parts:
                ids += next(encoded).ids
            yield np.array([*ids, END_ID], np.int32)

    pending: list[str] = []
    size = 0
    for text in documents:
        pending.append(text)
        size += len(text)
        if len(pending) == batch or size > 16 * CHUNK:
            yield from encode(pending)
            pending, size = [], 0
    yield from encode(pending)


def split_text(text: str) -> Iterator[str]:
    """Cut a long text at line ends into chunks of about CHUNK characters."""
    start = 0
    while start < len(text):
        end = start + CHUNK
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Return int32[vocabulary], the bytes of text that each token stands for."""
    lengths = np.zeros(tokenizer.get_vocab_size(), np.int32)
    for token, index in tokenizer.get_vocab().items():
        # In the byte-level alphabet each byte is one character.
        lengths[index] = 0 if index == END_ID else len(token)
    return lengths
