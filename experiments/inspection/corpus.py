"""From a config to all that is found in its corpus."""

import collections
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from experiments.inspection.found import report
from experiments.inspection.observe import Observed, observe
from experiments.inspection.survey import Survey, sample_tokenizer, survey
from lm.data.cleaning.records import Records
from lm.data.config import DataConfig
from lm.data.prepare import current_fingerprint, load_prepared, tokenizer_of
from lm.data.sources.corpus import Corpus, Document
from lm.data.texts import clean_corpus, numbered, open_corpus

DID = ("dropped", "changed", "kept")  # what a stage does to a document


class Inspection(NamedTuple):
    found: dict[str, Any]
    survey: Survey
    observed: Observed


def inspect(config: DataConfig, num_shards: int, folder: pathlib.Path) -> Inspection:
    """Look at the corpus of a config; ValueError if there is none, or not of documents.

    The folder takes the documents and their sketches, which the result reads.
    """
    corpus = open_corpus(config)
    if not isinstance(corpus, Corpus):
        raise ValueError(
            f"data.source={config.source} gives pairs of texts; expected a source of "
            "documents, such as text, jsonl, stdlib or tfds"
        )
    for name in ("looked", "chosen"):
        (folder / name).mkdir()
    size: collections.Counter = collections.Counter()
    observed = observe(config, counted(numbered(corpus), size), folder / "looked")
    tokenizer, trained_on = find_tokenizer(config, observed.documents)
    found = report(observed)
    wanted = [x["document"] for kind in found["kinds"].values() for x in kind["worst"]]
    surveyed = survey(observed.documents, observed.splits, tokenizer, num_shards, wanted)
    found |= {"tokens_by": trained_on, "shards": num_shards, **size}
    found |= surveyed.report() | chosen(config, corpus, folder / "chosen")
    return Inspection(found, surveyed, observed)


def counted(
    documents: Iterable[tuple[str, Document]], size: collections.Counter
) -> Iterator[tuple[str, Document]]:
    """Pass on the documents, and count them and their bytes of UTF-8."""
    for split, document in documents:
        size["documents"] += 1
        size["bytes"] += len(document.text.encode(errors="surrogatepass"))
        yield split, document


def find_tokenizer(config: DataConfig, documents: Records) -> tuple[Tokenizer, str]:
    """Return the tokenizer of the prepared data, or one trained on a sample; and which."""
    kind = f"{config.tokenizer} with {config.vocab_size} tokens"
    if prepared := load_prepared(config, current_fingerprint(config)):
        return prepared.tokenizer, f"{kind}, of the prepared data"
    if config.tokenizer == "pretrained":
        return tokenizer_of(config, ()), f"{kind}, of {config.tokenizer_file}"
    tokenizer = sample_tokenizer(config, documents)
    return tokenizer, f"estimated: {kind}, trained on a sample of the documents"


def chosen(config: DataConfig, corpus: Corpus, folder: pathlib.Path) -> dict[str, Any]:
    """Run the stages that the config chooses, and count what each did."""
    found: dict[str, Any] = {"stages": [], "stages_error": "", "weighed": 0}
    try:
        cleaned = clean_corpus(config, corpus, folder)
    except ValueError as error:  # such as a stage that leaves nothing
        return found | {"stages_error": str(error)}
    kinds: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    with (folder / "findings.jsonl").open(encoding="utf-8") as lines:
        for each in map(json.loads, lines):
            kinds[each["stage"]][each["kind"]] += 1
    for name, splits in cleaned.report.items():
        did = {what: sum(x.get(what, 0) for x in splits.values()) for what in DID}
        found["stages"].append({"stage": name, **did, "findings": dict(kinds[name])})
    left = Records(folder / "documents")
    found["weighed"] = sum(
        document.weight != 1 or bool(document.spans)
        for document in (left[place] for place in range(len(left)))
    )
    return found
