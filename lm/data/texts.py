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

SHIFTED_CHARACTERS = 300_000  # of the shifted text, at most


def open_corpus(config: DataConfig) -> Corpus | PairCorpus:
    return SOURCES[config.source].corpus(config)


def split_texts(corpus: Corpus, split: str) -> Iterator[str]:
    """Yield a split's texts, cleaned; of the shifted one as many as are used."""
    texts = map(clean, corpus.documents(split))
    return sample(texts, SHIFTED_CHARACTERS) if split == "shifted" else texts


def document_splits(config: DataConfig, corpus: Corpus) -> tuple[Texts, SplitRows]:
    """Return the functions from a split to its texts and to its rows, training first."""
    seen: set[bytes] = set()

    def rows(tokenizer: Tokenizer, split: str) -> Iterable[Row]:
        texts = split_texts(corpus, split)
        documents = tqdm(texts, f"prepare {split}", unit=" documents")
        encoded = encode_documents(tokenizer, deduplicate(documents, seen))
        return PACKINGS[config.packing](encoded, config.seq_len)

    return corpus.documents, rows


def training_texts(config: DataConfig) -> Iterator[str]:
    return split_texts(open_corpus(config), "train")


def held_out_texts(config: DataConfig, split: str) -> list[str]:
    """Return the texts of which the rows of a held-out split were made."""
    corpus, seen = open_corpus(config), set()
    for before in corpus.splits:
        found = list(deduplicate(split_texts(corpus, before), seen))
        if before == split:
            return found
    raise ValueError(f"the corpus has no split {split!r}")


def pack_texts(
    config: DataConfig, tokenizer: Tokenizer, texts: list[str], classes: bool = False
) -> Rows:
    """Pack texts into rows in memory, with the classes of their tokens if asked for."""
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
    # Packing goes by lengths alone, so the classes come to lie where their tokens do.
    found = rows(encode_classes(texts, tokenizer))[0] if classes else None
    return Rows(tokens, segments, found)


def sample(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        yield text
        characters -= len(text)
