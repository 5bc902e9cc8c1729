"""The standard library's source as a TFDS dataset; to import this is to import TFDS."""

import pathlib
import sys

import tensorflow_datasets as tfds

from lm.data.sources.stdlib import examples, source_files, split_of


class Stdlib(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("{}.{}.{}".format(*sys.version_info[:3]))

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"path": tfds.features.Text(), "text": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Source code of the Python standard library.",
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager):
        splits: dict[str, list[pathlib.Path]] = {}
        for path in source_files():
            splits.setdefault(split_of(path), []).append(path)
        return {name: examples(paths) for name, paths in splits.items()}

    def _generate_examples(self):
        raise AssertionError("each split has its own generator")
