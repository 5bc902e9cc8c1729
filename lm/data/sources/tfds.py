"""Corpora from TensorFlow Datasets (TFDS)."""

import pathlib
from collections.abc import Iterator

from lm.data.sources.corpus import Corpus, Document


def tfds_corpus(name: str, splits: dict[str, str], text_key: str, data_dir: str) -> Corpus:
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
        },
        lambda split: tfds_documents(builder, splits[split], text_key),
        tuple(splits),
    )


def tfds_documents(
    builder, split: str, text_key: str, name_key: str = ""
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
    for number, example in enumerate(builder.as_data_source(split=split), 1):
        name = as_text(example[name_key]) if name_key else f"{builder.name}#{number}"
        key = str(pathlib.PurePath(name).parent) if name_key else builder.name
        yield Document(as_text(example[text_key]), name, key)


def as_text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
