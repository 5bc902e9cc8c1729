"""The embedded corpus and other TFDS datasets, prepared by TFDS for real."""

import keyword
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lm.data.sources import stdlib
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
    assert 0.05 < sum(map(len, held_out)) / sum(map(len, train)) < 0.15
    assert not set(train) & set(held_out) - {""}
    names = [document.name for document in corpus.documents("validation")]
    assert len(names) > 50 and not any(name.startswith("encodings") for name in names)
    assert max(map(len, held_out)) < sum(map(len, held_out)) / 4


def test_the_identity_follows_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(stdlib, "stdlib_folder", lambda: tmp_path)
    files = [tmp_path / name for name in ("a.py", "b.py")]
    for file in files:
        file.write_text("x = 1\n")

    def identity():
        return stdlib.identity_of(stdlib.source_files(), tmp_path / "cache")["files"]

    first = identity()
    files[0].write_text("x = 2\n")  # of the same size
    changed = identity()
    files[0].write_text("x = 1\n")  # other times, but the contents of before
    assert changed != first == identity()
    files[1].rename(tmp_path / "c.py")  # the path decides the split
    assert identity() != first


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
        features = {"body": tfds.features.Text(), "n": tfds.features.Scalar(np.int32)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples([b"aaa", b"bb\xff", b"bbb"]),
            "test": self._generate_examples([b"ccc"]),
        }

    def _generate_examples(self, texts):
        for number, text in enumerate(texts):
            yield number, {"body": text, "n": number}


def test_any_tfds_dataset(cache, capsys):
    ThreeTexts(data_dir=cache, file_format="array_record").download_and_prepare()
    splits = {"train": "train", "validation": "test"}
    corpus = tfds_corpus("three_texts", splits, "body", str(cache), "skip")
    assert sorted(corpus.texts("train")) == ["aaa", "bbb"]
    assert "left out 1 records" in capsys.readouterr().err
    (only,) = corpus.documents("validation")
    assert only[:3] == ("ccc", "three_texts/test#1", "three_texts")
    with pytest.raises(
        ValueError, match=r"three_texts/train#\d is not UTF-8: byte 2 is 0xff"
    ):
        list(tfds_corpus("three_texts", splits, "body", str(cache)).texts("train"))
    with pytest.raises(ValueError, match=r"three_texts/train#1 is no text but a int"):
        list(tfds_corpus("three_texts", splits, "n", str(cache)).texts("train"))
    with pytest.raises(ValueError, match="it has body, n"):
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
