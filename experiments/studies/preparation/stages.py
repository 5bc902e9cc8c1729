"""The speed of each part of preparation, alone and on one core."""

import os
import time
from collections.abc import Callable
from typing import Any

from lm.data.cleaning.leakage import LEAKAGE, LeakageConfig
from lm.data.cleaning.records import pack, unpack
from lm.data.cleaning.table import STAGES
from lm.data.rows.packing import PACKINGS
from lm.data.sources.corpus import Document
from lm.data.tokenizer import encode_documents, train_tokenizer

PARTS = (*STAGES, "leakage", "records", "learn tokens", "tokenise", "pack")
FEW = 50  # documents
VOCABULARY, SEQ_LEN = 4096, 256  # as in configs/tiny.py


def measure_part(name: str, texts: list[str]) -> dict[str, float]:
    """Return the MB of text a second that one part of preparation gets through."""
    documents = [Document(text, f"{place}.py") for place, text in enumerate(texts)]
    num_bytes = sum(len(text.encode(errors="surrogatepass")) for text in texts)
    part(name, documents[:FEW])()  # imports, which take seconds
    seconds = timed(part(name, documents))
    return {
        "documents": len(texts),
        "bytes": num_bytes,
        "mb_per_s": num_bytes / 1e6 / seconds,
    }


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def part(name: str, documents: list[Document]) -> Callable[[], Any]:
    """Return what does all the work of a part; what it starts from is made here."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core; read at each call
    texts = [document.text for document in documents]
    if name in STAGES:
        return lambda: whole_stage(name, documents)
    if name == "leakage":
        held_out = len(documents) // 20
        return lambda: leaks(documents, len(documents) - held_out)
    if name == "records":
        return lambda: [unpack(pack(document)) for document in documents]
    if name == "learn tokens":
        return lambda: train_tokenizer("bpe", texts, VOCABULARY)
    tokenizer = train_tokenizer("bpe", texts[:: len(texts) // 200 + 1], VOCABULARY)
    if name == "tokenise":
        return lambda: list(encode_documents(tokenizer, texts))
    encoded = list(encode_documents(tokenizer, texts))
    return lambda: sum(1 for _ in PACKINGS["first_fit"](encoded, SEQ_LEN))


def whole_stage(name: str, documents: list[Document]) -> None:
    """Sketch, decide and apply, each over all documents."""
    stage = STAGES[name]
    config, verdicts = stage.config(), [None] * len(documents)
    if stage.decide:
        verdicts = stage.decide(config, [stage.sketch(config, x) for x in documents])
    for document, verdict in zip(documents, verdicts, strict=True):
        stage.apply(config, document, verdict)


def leaks(documents: list[Document], num_train: int) -> None:
    config = LeakageConfig(near=None)  # near duplicates are a stage of their own
    sketches = [LEAKAGE.sketch(config, document) for document in documents]
    LEAKAGE.decide(config, sketches, num_train, [document.text for document in documents])
