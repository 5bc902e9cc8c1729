"""Tokenizers: any text in, the same text out, none of it ever unknown.

Each begins with the 256 bytes and the end-of-text mark, and goes on with longer pieces,
which it learns from text: `bpe` those that occur most often within words (Sennrich et al.
2016; GPT-2's bytes), `character` the characters, `word` the words. A word or a character
that is not among them is spelled as bytes, so bits per byte are exact and comparable.
"""

import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from lm.vocabulary import END_ID

END_OF_TEXT = "<|endoftext|>"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())  # each byte as a character
NUM_BYTES = 1 + len(ALPHABET)  # the vocabulary of bytes alone
LEAST_VOCAB_SIZE = {
    "bpe": NUM_BYTES,  # which is `byte`
    "byte": NUM_BYTES,
    "character": NUM_BYTES + 1,
    "word": NUM_BYTES + 1,
}
MIN_COUNT = 2  # of a piece: from those seen once, a model learns how others are spelled
CHUNK = 1 << 20  # characters encoded at once: an encoding takes 100 times its text


def train_tokenizer(kind: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn at most `vocab_size` tokens from texts; `kind` is in LEAST_VOCAB_SIZE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cuts(kind)
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "bpe":
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=ALPHABET,
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
    else:
        num_pieces = vocab_size - NUM_BYTES
        pieces = common_pieces(texts, cuts(kind), num_pieces) if num_pieces else []
        ids = {token: i for i, token in enumerate([END_OF_TEXT, *ALPHABET, *pieces])}
        # Without merges, a piece that has no id of its own stays the bytes that it is of.
        tokenizer.model = models.BPE(ids, [], ignore_merges=True)
        tokenizer.add_special_tokens([END_OF_TEXT])
    return as_text(tokenizer)


def cuts(kind: str) -> pre_tokenizers.PreTokenizer:
    """Return what cuts a text into characters, or as GPT-2 does into words.

    A word is letters, digits or other signs, with a space before them; or white space.
    """
    if kind != "character":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    single = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([single, as_bytes])


def common_pieces(
    texts: Iterable[str], cut: pre_tokenizers.PreTokenizer, num: int
) -> list[str]:
    """Return the `num` commonest pieces of more than a byte, in the byte alphabet."""
    counter = Tokenizer(models.WordLevel())
    counter.pre_tokenizer = cut
    trainer = trainers.WordLevelTrainer(
        vocab_size=num + len(ALPHABET), min_frequency=MIN_COUNT, show_progress=False
    )
    counter.train_from_iterator(texts, trainer)
    found = sorted(counter.get_vocab(), key=counter.token_to_id)
    return [piece for piece in found if len(piece) > 1][:num]


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
