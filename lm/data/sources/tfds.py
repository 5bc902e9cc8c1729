"""Corpora from TensorFlow Datasets (TFDS)."""

import pathlib
from collections.abc import Iterator

from lm.data.sources.corpus import Corpus, Document
from lm.data.sources.reading import BadRecord, BadRecords, decode


def tfds_corpus(
    name: str,
    splits: dict[str, str],
    text_key: str,
    data_dir: str,
    on_bad_record: str = "stop",
) -> Corpus:
    """Read any text dataset that TFDS knows; `splits` maps our splits to those of TFDS."""
    import tensorflow_datasets as tfds

    if not name:
        raise ValueError("data.source=tfds needs data.name, for example lm1b")
    try:
        builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        raise ValueError(
            f"data.name {name!r} is not a TFDS dataset; see tfds.list_builders()"
        ) from None
    return Corpus(
        {
            "source": "tfds",
            "name": builder.info.full_name,
            "splits": splits,
            "key": text_key,
            "on_bad_record": on_bad_record,
        },
        lambda split: tfds_documents(
            builder, splits[split], text_key, on_bad_record=on_bad_record
        ),
        tuple(splits),
    )


def tfds_documents(
    builder, split: str, text_key: str, name_key: str = "", on_bad_record: str = "stop"
) -> Iterator[Document]:
    """Yield the examples of a split; `name_key` is the feature that names one, if any."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    builder.download_and_prepare()
    available = sorted(builder.info.splits)
    if split.split("[")[0] not in available:
        raise ValueError(
            f"TFDS dataset {builder.name} has no split {split!r}; "
            f"it has {', '.join(available)}"
        )
    if text_key not in builder.info.features:
        raise ValueError(
            f"data.text_key {text_key!r} is not a feature of {builder.name}; "
            f"it has {', '.join(builder.info.features)}"
        )
    bad = BadRecords(on_bad_record)
    for number, example in enumerate(builder.as_data_source(split=split), 1):
        name = f"{builder.name}/{split}#{number}"
        try:
            text = as_text(name, example[text_key])
            name = as_text(name, example[name_key]) if name_key else name
        except BadRecord as error:
            bad(error)
            continue
        key = str(pathlib.PurePath(name).parent) if name_key else builder.name
        yield Document(text, name, key)
    bad.report(set())


def as_text(name: str, value: bytes | str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return decode(name, value)
    raise BadRecord(name, f"is no text but a {type(value).__name__}; set data.text_key")
