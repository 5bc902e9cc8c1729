"""The embedded corpus and other TFDS datasets, prepared by TFDS for real."""

import keyword
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from lm.data.sources.stdlib import stdlib_corpus
from lm.data.sources.tfds import tfds_corpus


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


def test_stdlib_is_the_running_interpreters_library(cache):
    corpus = stdlib_corpus(cache)
    assert corpus.identity["version"] == "{}.{}.{}".format(*sys.version_info[:3])
    train, held_out = (list(corpus.texts(s)) for s in ("train", "validation"))
    with open(keyword.__file__, encoding="utf-8") as file:
        assert file.read() in train + held_out
    assert 5e6 < sum(map(len, train)) < 5e7
    assert 0.005 < sum(map(len, held_out)) / sum(map(len, train)) < 0.15
    assert not set(train) & set(held_out) - {""}


def test_a_config_and_preparing_import_no_tfds():
    program = "import sys, lm.data.prepare; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, check=True
    ).stdout.decode()
    assert "lm.data.sources.tfds" in modules.split()
    assert "tensorflow_datasets" not in modules.split()


class ThreeTexts(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"body": tfds.features.Text()}),
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples("ab"),
            "test": self._generate_examples("c"),
        }

    def _generate_examples(self, letters):
        for letter in letters:
            yield letter, {"body": letter * 3}


def test_any_tfds_dataset(cache):
    ThreeTexts(data_dir=cache, file_format="array_record").download_and_prepare()
    splits = {"train": "train", "validation": "test"}
    corpus = tfds_corpus("three_texts", splits, "body", str(cache))
    assert sorted(corpus.texts("train")) == ["aaa", "bbb"]
    assert list(corpus.texts("validation")) == ["ccc"]
    with pytest.raises(ValueError, match="it has body"):
        list(tfds_corpus("three_texts", splits, "text", str(cache)).texts("train"))
    wrong = {"train": "train", "validation": "dev"}
    with pytest.raises(ValueError, match="it has test, train"):
        corpus = tfds_corpus("three_texts", wrong, "body", str(cache))
        list(corpus.texts("validation"))


def test_unknown_and_missing_names(cache):
    splits = {"train": "train", "validation": "test"}
    with pytest.raises(ValueError, match="not a TFDS dataset"):
        tfds_corpus("no_such_dataset", splits, "text", str(cache))
    with pytest.raises(ValueError, match="needs data.name"):
        tfds_corpus("", splits, "text", str(cache))
    # A dataset of TFDS's own is found by name, without downloading it.
    assert (
        tfds_corpus("lm1b", splits, "text", str(cache)).identity["name"].startswith("lm1b/")
    )
