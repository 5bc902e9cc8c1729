"""Tokenizers: any text can be encoded, and decoding gives the same text back.

The vocabulary of each kind begins with the end-of-text mark and the 256 bytes. Longer
pieces follow, learnt from text:

  byte       none
  bpe        the pieces of words that occur most often (Sennrich et al. 2016, on bytes as in
             GPT-2)
  character  the characters of more than one byte
  word       the words

A word or a character that has no token of its own is written as bytes. So no text is
unknown, and the bits per byte of all kinds can be compared.
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
    "bpe": NUM_BYTES,  # with no more, it is the same as `byte`
    "byte": NUM_BYTES,
    "character": NUM_BYTES + 1,
    "word": NUM_BYTES + 1,
}
# A word or character seen once gets no token: the model learns to spell from its bytes.
MIN_COUNT = 2
# Characters that are encoded at once: an encoding takes 100 times the memory of its text.
CHUNK = 1 << 20


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
        # Without merges, a piece that has no id of its own stays as its bytes.
        tokenizer.model = models.BPE(ids, [], ignore_merges=True)
        tokenizer.add_special_tokens([END_OF_TEXT])
    return as_text(tokenizer)


def cuts(kind: str) -> pre_tokenizers.PreTokenizer:
    """Return the pre-tokenizer that cuts a text into characters, or else into words.

    Words are those of GPT-2: letters, digits or other signs, with the space before them; or
    white space.
    """
    if kind != "character":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    single = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([single, as_bytes])


def common_pieces(
    texts: Iterable[str], cut: pre_tokenizers.PreTokenizer, num: int
) -> list[str]:
    """Return the `num` commonest pieces of more than one byte, in the byte alphabet."""
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
    """Treat "<|endoftext|>" inside a document as plain text, not as the end of it."""
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode_documents(
    tokenizer: Tokenizer, documents: Iterable[str], batch: int = 256
) -> Iterator[np.ndarray]:
    """Yield the ids of each document, with END_ID before and after; uses all cores."""

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
    """Return int32[vocabulary], the number of bytes of text that each token stands for."""
    lengths = np.zeros(tokenizer.get_vocab_size(), np.int32)
    for token, index in tokenizer.get_vocab().items():
        # In the byte-level alphabet each byte is one character.
        lengths[index] = 0 if index == END_ID else len(token)
    return lengths
