"""Word vectors: which token gets which, how the embedding begins, and who is near."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs.base import Experiment
from experiments.run.build import build
from experiments.run.check import check
from experiments.run.workdir import check_own, write_files
from lm.data.config import DataConfig
from lm.data.embeddings import (
    neighbours,
    read_header,
    read_vectors,
    token_id,
    write_vectors,
)
from lm.data.tokenizer import train_tokenizer
from lm.models.recurrent import RecurrentConfig
from lm.models.seq2seq.task import Seq2SeqConfig
from lm.models.setting import Setting
from lm.models.transformer.config import TransformerConfig
from parallel.config import ParallelConfig

TOKENIZER = train_tokenizer("bpe", ["def self return self def other def self"] * 9, 300)
SIZE, WIDTH = TOKENIZER.get_vocab_size(), 8
OWN = TOKENIZER.get_vocab()


def write(file, lines, header=None):
    count = header or f"{len(lines)} {WIDTH}"
    file.write_text("\n".join([count, *lines]) + "\n", encoding="utf-8")
    return str(file)


def line(token, vector):
    return f"{token} {' '.join(map(str, vector))}"


def drawn(seed):
    return np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)


def test_tokens_are_found_by_name_and_by_text(tmp_path):
    """ " self" has no name of its own in the file, and takes the vector of its text."""
    assert {"def", "Ġself", "Ġdef", "Ġreturn"} < set(OWN) and "self" not in OWN
    vectors = {name: drawn(i) for i, name in enumerate(["def", "self", "Ġdef", "nowhere"])}
    file = write(tmp_path / "a.vec", [line(*each) for each in vectors.items()])
    found = read_vectors(file, TOKENIZER, WIDTH)
    expected = {"def": "def", "Ġdef": "Ġdef", "Ġself": "self"}
    assert found.ids.tolist() == sorted(OWN[name] for name in expected)
    for name, of in expected.items():
        (vector,) = found.vectors[found.ids == OWN[name]]
        np.testing.assert_array_equal(vector, vectors[of])


def test_bad_files_are_named(tmp_path):
    good = line("def", drawn(0))
    for name, lines, header, words in [
        ("wide", [good], f"1 {WIDTH + 1}", "vectors of 9 numbers, but model.width is 8"),
        ("plain", [good], "def 1 2 3", "first line is 'def 1 2 3'; expected the number"),
        ("cut", [good], f"2 {WIDTH}", "has 1 vectors, but its first line says 2"),
        ("short", [good, "Ġself 1 2"], None, "line 3 has 2 numbers; expected 8"),
        ("word", [good, line("Ġself", ["x"] * 8)], None, "line 3 has 'x x .*no vector"),
        ("nan", [line("def", [np.nan] * 8)], None, "line 2 .* all finite"),
        ("other", [line("xyz", drawn(0))], None, f"none of the {SIZE} tokens"),
        ("zero", [line("def", [0] * 8)], None, "all zero"),
    ]:
        file = write(tmp_path / name, lines, header)
        with pytest.raises(ValueError, match=words):
            read_vectors(file, TOKENIZER, WIDTH)
    with pytest.raises(ValueError, match="none.vec' cannot be read"):
        read_header(str(tmp_path / "none.vec"), WIDTH)
    config = Experiment(model=TransformerConfig(width=16, embeddings=str(tmp_path / "cut")))
    with pytest.raises(ValueError, match="8 numbers, but model.width is 16"):
        check(config)


FAMILIES = [
    TransformerConfig(width=WIDTH, num_layers=1, num_heads=2),
    RecurrentConfig(width=WIDTH, num_layers=1),
    Seq2SeqConfig(width=WIDTH, num_layers=1, num_heads=2),
    Seq2SeqConfig("recurrent", width=WIDTH, num_layers=1),
]


def test_families_with_the_field_have_the_table():
    for model in FAMILIES:
        assert model.embeddings == ""
        task = model.task(Setting(SIZE, 16, 8))
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        assert shapes["embedding"].shape == (SIZE, WIDTH)


def test_rows_begin_in_the_given_directions_at_the_size_of_the_others(tmp_path):
    vectors = [100 * drawn(0), 7 * drawn(1)]
    named = zip(("def", "self"), vectors, strict=True)
    file = write(tmp_path / "a.vec", [line(*each) for each in named])
    given = read_vectors(file, TOKENIZER, WIDTH)
    config = Experiment(
        data=DataConfig(seq_len=16), model=FAMILIES[0],
        parallel=ParallelConfig(strategy="fsdp"),
    )  # fmt: skip
    plain, filled = (
        build(config, SIZE, config.parallel.mesh(), given=each)[1]
        .init(jax.random.key(3))
        .params
        for each in (None, given)
    )
    table, usual = (np.asarray(x["embedding"]) for x in (filled, plain))
    factor = np.sqrt(np.mean(usual**2) / np.mean(given.vectors**2))
    np.testing.assert_allclose(table[given.ids], given.vectors * factor, rtol=1e-5)
    others = np.setdiff1d(np.arange(SIZE), given.ids)
    np.testing.assert_array_equal(table[others], usual[others])
    same = jax.tree.map(lambda a, b: bool((a == b).all()), filled, plain)
    assert jax.tree.leaves(same).count(False) == 1


def test_neighbours_are_those_of_brute_force():
    table = np.random.default_rng(0).normal(size=(40, WIDTH)).astype(np.float32)
    table[9], table[11] = 0, 3 * table[5]
    found = neighbours(table, 5, 6)
    expected = []
    for other in range(40):
        lengths = np.linalg.norm(table[5]) * np.linalg.norm(table[other])
        cosine = float(np.dot(table[5], table[other]) / lengths) if lengths else 0.0
        expected += [(-cosine, other)] if other != 5 else []
    assert [other for other, _ in found] == [other for _, other in sorted(expected)[:6]]
    np.testing.assert_allclose(
        [cosine for _, cosine in found], [-x for x, _ in sorted(expected)[:6]], rtol=1e-5
    )
    assert found[0][0] == 11
    assert token_id(TOKENIZER, "self") == OWN["Ġself"]
    with pytest.raises(ValueError, match="'zebra' is no token .*'z'"):
        token_id(TOKENIZER, "zebra")


def test_what_is_written_is_read_again(tmp_path):
    table = np.random.default_rng(0).normal(size=(SIZE, WIDTH)).astype(np.float32)
    assert write_vectors(tmp_path / "a.vec", TOKENIZER, table) == SIZE
    found = read_vectors(str(tmp_path / "a.vec"), TOKENIZER, WIDTH)
    assert found.ids.tolist() == list(range(SIZE))
    np.testing.assert_array_equal(found.vectors, table)


def test_a_run_does_not_go_on_with_other_vectors(tmp_path):
    file = tmp_path / "a.vec"
    write(file, [line("def", drawn(0))])
    data = SimpleNamespace(meta={"fingerprint": "f"}, tokenizer=TOKENIZER)
    config = Experiment(model=TransformerConfig(width=WIDTH, embeddings=str(file)))
    (tmp_path / "run").mkdir()
    write_files(tmp_path / "run", config, data)
    moved = tmp_path / "b.vec"
    moved.write_bytes(file.read_bytes())
    model = dataclasses.replace(config.model, embeddings=str(moved))
    check_own(tmp_path / "run", dataclasses.replace(config, model=model), data)
    write(file, [line("def", drawn(1))])
    with pytest.raises(ValueError, match="the content of model.embeddings is .* there"):
        check_own(tmp_path / "run", config, data)
    plain = dataclasses.replace(config.model, embeddings="")
    with pytest.raises(ValueError, match="there and nothing here"):
        check_own(tmp_path / "run", dataclasses.replace(config, model=plain), data)
