"""Tokenizers: any text can be encoded, and decoding gives the same text back.

The vocabulary of each kind begins with the end-of-text mark and the 256 bytes. Longer
pieces follow, learnt from text:

  byte       none
  bpe        the pieces of words that occur most often (Sennrich et al. 2016, on bytes as in
             GPT-2)
  character  the characters of more than one byte
  word       the words

(lm/data/pretrained.py loads those of other models.)

A word or a character that has no token of its own is written as bytes. So no text is
unknown, and the bits per byte of all kinds can be compared.
"""

import hashlib
import heapq
import json
import pathlib
import re
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
BYTE = re.compile("<0x[0-9A-F]{2}>")
# An encoding takes 100 times the memory of its text: these many characters at once, in
# chunks that are spread over the cores.
BATCH, CHUNK = 1 << 20, 1 << 17
# Letters without a break, such as Chinese or base64, are cut here: the time to learn or to
# merge the tokens of a word grows faster than its length.
LONGEST_WORD = 256


def train_tokenizer(kind: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn at most `vocab_size` tokens from texts; `kind` is in LEAST_VOCAB_SIZE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cuts(kind)
    tokenizer.decoder = decoders.ByteLevel()
    texts = (chunk for text in texts for chunk in split_text(text))
    if kind == "bpe":
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=MIN_COUNT,
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
    white space. A longer word than LONGEST_WORD is several.
    """
    n = LONGEST_WORD
    words = (
        rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}{{1,{n}}}| ?\p{{N}}{{1,{n}}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]{{1,{n}}}|\s{{1,{n}}}(?!\S)|\s{{1,{n}}}"
    )
    pattern = r"[\s\S]" if kind == "character" else words
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, as_bytes])


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
    tokenizer: Tokenizer, documents: Iterable[str]
) -> Iterator[np.ndarray]:
    """Yield the ids of each document, with END_ID before and after; uses all cores."""
    mark = np.array([END_ID], np.int32)
    ids = [mark]
    for batch in batches(documents):
        encodings = tokenizer.encode_batch_fast([chunk for chunk, _ in batch])
        for (_, ends), encoding in zip(batch, encodings, strict=True):
            ids.append(np.array(encoding.ids, np.int32))
            if ends:
                yield np.concatenate([*ids, mark])
                ids = [mark]


def batches(documents: Iterable[str]) -> Iterator[list[tuple[str, bool]]]:
    """Yield lists of (chunk, whether its document ends here), of about BATCH characters."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for text in documents:
        *begin, last = split_text(text)
        for chunk, ends in (*((chunk, False) for chunk in begin), (last, True)):
            batch.append((chunk, ends))
            size += len(chunk) + 100  # an empty text takes some memory, too
            if size > BATCH:
                yield batch
                batch, size = [], 0
    yield batch


def split_text(text: str) -> Iterator[str]:
    """Cut a text at line ends into chunks of at most CHUNK characters, at least one."""
    start = 0
    while len(text) - start > CHUNK:
        end = text.rfind("\n", start, start + CHUNK) + 1 or start + CHUNK
        yield text[start:end]
        start = end
    yield text[start:]


def sample_of_all(texts: Iterable[str], characters: int) -> list[str]:
    """Return chunks from all over the texts, in their order: at most so many characters.

    Those with the smallest hashes are taken, all if they fit. Memory does not grow with
    the texts.
    """
    kept: list[tuple[int, int, str]] = []  # a heap: the largest hash first
    size, least_left_out = 0, 1 << 64
    chunks = (chunk for text in texts for chunk in split_text(text))
    for index, chunk in enumerate(chunks):
        digest = hashlib.blake2b(chunk.encode(), digest_size=8).digest()
        order = int.from_bytes(digest, "big")
        if order >= least_left_out:
            continue
        heapq.heappush(kept, (-order, index, chunk))
        size += len(chunk)
        while size > characters:
            negative, _, last = heapq.heappop(kept)
            size, least_left_out = size - len(last), -negative
    return [chunk for _, _, chunk in sorted(kept, key=lambda each: each[1])]


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Return int32[vocabulary], the number of bytes of text that each token stands for.

    A tokenizer writes bytes in the byte-level alphabet, or else as sentencepiece does: a
    space as U+2581, and a byte without a token of its own as <0x0A>.
    """
    is_byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer.to_str())["decoder"])
    added = {each.content for each in tokenizer.get_added_tokens_decoder().values()}
    lengths = np.zeros(tokenizer.get_vocab_size(), np.int32)
    for token, index in tokenizer.get_vocab().items():
        if is_byte_level and token not in added:
            lengths[index] = len(token)  # each byte is one character
        elif BYTE.fullmatch(token):
            lengths[index] = 1
        else:
            lengths[index] = len(token.replace("\u2581", " ").encode())
    lengths[END_ID] = 0
    return lengths
