"""The texts of a split: opened, cleaned, deduplicated, packed."""

from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from lm.data.classes import encode_classes
from lm.data.cleaning.clean import clean
from lm.data.cleaning.dedup import deduplicate
from lm.data.config import DataConfig
from lm.data.rows.packing import PACKINGS, Row, SplitRows, Texts
from lm.data.rows.store import Rows
from lm.data.sources.corpus import Corpus
from lm.data.sources.pairs import PairCorpus
from lm.data.sources.table import SOURCES
from lm.data.tokenizer import encode_documents

SHIFTED_CHARACTERS = 300_000  # at most this much of the shifted text is used


def open_corpus(config: DataConfig) -> Corpus | PairCorpus:
    return SOURCES[config.source].corpus(config)


def split_texts(corpus: Corpus, split: str) -> Iterator[str]:
    """Yield the cleaned texts of a split; those of the shifted split only up to a limit."""
    texts = map(clean, corpus.texts(split))
    return sample(texts, SHIFTED_CHARACTERS) if split == "shifted" else texts


def document_splits(config: DataConfig, corpus: Corpus) -> tuple[Texts, SplitRows]:
    """Return two functions: split -> its texts, and (tokenizer, split) -> its rows.

    Ask for the rows of training first: each split leaves out the texts of earlier ones.
    """
    seen: set[bytes] = set()

    def rows(tokenizer: Tokenizer, split: str) -> Iterable[Row]:
        texts = split_texts(corpus, split)
        documents = tqdm(texts, f"prepare {split}", unit=" documents")
        encoded = encode_documents(tokenizer, deduplicate(documents, seen))
        return PACKINGS[config.packing](encoded, config.seq_len)

    return corpus.texts, rows


def training_texts(config: DataConfig) -> Iterator[str]:
    return split_texts(open_corpus(config), "train")


def held_out_texts(config: DataConfig, split: str) -> list[str]:
    """Return the texts whose tokens are in the rows of a held-out split."""
    corpus, seen = open_corpus(config), set()
    for before in corpus.splits:
        found = list(deduplicate(split_texts(corpus, before), seen))
        if before == split:
            return found
    raise ValueError(f"the corpus has no split {split!r}")


def pack_texts(
    config: DataConfig, tokenizer: Tokenizer, texts: list[str], classes: bool = False
) -> Rows:
    """Pack texts into rows in memory; with `classes`, also the class of each token."""
    pack = PACKINGS[config.packing]

    def rows(encoded: Iterable[np.ndarray]) -> list[np.ndarray]:
        packed = list(pack(encoded, config.seq_len))
        if not packed:
            raise ValueError(
                f"the text is too short for one row of data.seq_len {config.seq_len}; "
                "give more text"
            )
        return [np.stack(x) for x in zip(*packed, strict=True)]

    tokens, segments = rows(encode_documents(tokenizer, texts))
    # Packing looks only at lengths, so each class lies where its token lies.
    found = rows(encode_classes(texts, tokenizer))[0] if classes else None
    return Rows(tokens, segments, found)


def sample(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        yield text
        characters -= len(text)
