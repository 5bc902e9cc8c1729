"""The documents of a corpus: opened, cleaned, packed."""

import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from lm.data.classes import encode_classes
from lm.data.cleaning.cores import Cores, Start
from lm.data.cleaning.leakage import LeakageConfig
from lm.data.cleaning.records import Records
from lm.data.cleaning.run import Cleaned, Leaks, run_steps
from lm.data.cleaning.table import STAGES, chosen_stages
from lm.data.cleaning.work import Step, apply_clean
from lm.data.config import DataConfig
from lm.data.rows.packing import PACKINGS, Row
from lm.data.rows.spans import span_rows
from lm.data.rows.store import Rows
from lm.data.rows.weights import encode
from lm.data.sources.corpus import SHIFTED_CHARACTERS, Corpus, Document, head
from lm.data.sources.mixture import mixed_corpus
from lm.data.sources.pairs import PairCorpus
from lm.data.sources.table import SOURCES


def open_corpus(config: DataConfig) -> Corpus | PairCorpus:
    """Open the source of a config, or all sources of its mixture."""
    if not config.sources:
        return SOURCES[config.source].corpus(config)
    return mixed_corpus(
        config.sources, lambda each: SOURCES[each.source].corpus(config.alone(each))
    )


def numbered(corpus: Corpus) -> Iterator[tuple[str, Document]]:
    """Yield all documents in their order, with their splits.

    Of the shifted split come only the first ones, up to SHIFTED_CHARACTERS. ValueError for
    a split without documents.
    """
    for split in corpus.splits:
        documents = corpus.documents(split)
        if split == "shifted":
            documents = head(documents, SHIFTED_CHARACTERS)
        is_empty = True
        for document in documents:
            is_empty = False
            yield split, document
        if is_empty:
            raise ValueError(
                f"the {split} text has no document with text; give more, or other files"
            )


def clean_corpus(
    config: DataConfig, corpus: Corpus, folder: pathlib.Path, executor: Start = Cores
) -> Cleaned:
    """Clean the documents of all splits and keep them in `folder`; see `run_steps`."""
    names = chosen_stages(config.stages)
    steps = [Step(name, STAGES[name], getattr(config, name)) for name in names]
    near = None if "near_dedup" in names else config.near_dedup
    leaks = Leaks(config.leakage, LeakageConfig(near))
    return run_steps(steps, leaks, numbered(corpus), folder, executor)


def kept_documents(
    folder: pathlib.Path, num_documents: dict[str, int], split: str
) -> Records:
    """Return the documents of a split that `clean_corpus` kept in `folder`."""
    splits = list(num_documents)
    start = sum(num_documents[before] for before in splits[: splits.index(split)])
    return Records(folder / "documents", start, start + num_documents[split])


def document_rows(
    config: DataConfig,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    numbers: Sequence[int],
    split: str,
) -> Iterable[Row]:
    """Pack the documents of these numbers."""
    chosen = (documents[number] for number in numbers)
    shown = tqdm(chosen, f"pack {split}", len(numbers), unit=" documents")
    return pack(config, encode(tokenizer, shown))


def pack(config: DataConfig, encoded: Iterable[np.ndarray]) -> Iterable[Row]:
    if config.packing == "spans":
        return span_rows(config.spans, encoded, config.seq_len, config.source_len)
    return PACKINGS[config.packing](encoded, config.seq_len)


def clean_alone(config: DataConfig, documents: Iterable[Document]) -> Iterator[Document]:
    """Clean documents as those of the corpus are, but for the stages that compare them."""
    for document in documents:
        document, _ = apply_clean(None, document, None)
        for name in chosen_stages(config.stages):
            if document and not STAGES[name].decide:
                document, _ = STAGES[name].apply(getattr(config, name), document, None)
        if document:
            yield document


def pack_texts(
    config: DataConfig, tokenizer: Tokenizer, texts: list[str], classes: bool = False
) -> Rows:
    """Pack texts into rows in memory; with `classes`, also the class of each token."""

    def rows(encoded: Iterable[np.ndarray]) -> list[np.ndarray]:
        packed = list(pack(config, encoded))
        if not packed:
            raise ValueError(
                f"the text is too short for one row of data.seq_len {config.seq_len}; "
                "give more text"
            )
        return [np.stack(x) for x in zip(*packed, strict=True)]

    tokens, segments = rows(encode(tokenizer, (Document(text, "") for text in texts)))
    # Packing looks only at lengths, so each class lies where its token lies.
    found = rows(encode_classes(texts, tokenizer))[0] if classes else None
    return Rows(tokens["id"], segments, found, documents=tokens["document"])
