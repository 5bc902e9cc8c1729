"""Pairs: where they come from, and what becomes of them in rows."""

import gettext
import gzip
import struct

import numpy as np
import pytest

from configs import fields
from lm.data.config import DataConfig
from lm.data.prepare import prepare
from lm.data.rows.order import Order, train_batches, validation_batches
from lm.data.rows.pairs import encode_sources
from lm.data.sources.files import Policy
from lm.data.sources.pairs import catalogues, gettext_corpus, parallel_corpus, read_mo
from lm.task import targets_mask
from lm.vocabulary import END_ID


def write_mo(file, messages, order="<"):
    """Write a catalogue as msgfmt does: sorted, the tables before the strings."""
    pairs = sorted((k.encode(), v.encode()) for k, v in messages.items())
    start, strings, tables = 28 + 16 * len(pairs), b"", [[], []]
    for side in (0, 1):
        for pair in pairs:
            tables[side] += [len(pair[side]), start + len(strings)]
            strings += pair[side] + b"\0"
    head = [0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, start]
    numbers = head + tables[0] + tables[1]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(struct.pack(f"{order}{len(numbers)}I", *numbers) + strings)


MESSAGES = {
    "": "Content-Type: text/plain; charset=UTF-8\n"
    "Plural-Forms: nplurals=2; plural=n != 1;\n",
    "yes": "ja",
    "month\x04May": "Mai",
    "%d day\0%d days": "%d Tag\0%d Tage",
    "untranslated": "",
    **{f"message {i}": f"Nachricht {i}" for i in range(60)},
}


@pytest.mark.parametrize("order", "<>")
def test_catalogues_are_read_as_the_library_reads_them(tmp_path, order):
    write_mo(tmp_path / "a.mo", MESSAGES, order)
    pairs = dict(read_mo(tmp_path / "a.mo"))
    with (tmp_path / "a.mo").open("rb") as stream:
        library = gettext.GNUTranslations(stream)
    assert pairs.pop("May") == library.pgettext("month", "May") == "Mai"
    assert pairs.pop("%d days") == library.ngettext("%d day", "%d days", 2)
    assert pairs.pop("%d day") == library.ngettext("%d day", "%d days", 1)
    assert pairs == {message: library.gettext(message) for message in pairs}
    assert len(pairs) == 61
    (tmp_path / "b.mo").write_bytes(b"not a catalogue")
    with pytest.raises(ValueError, match="b.mo is not a compiled gettext catalogue"):
        list(read_mo(tmp_path / "b.mo"))
    for end in (-3, 40):  # inside the last text, inside the tables
        (tmp_path / "c.mo").write_bytes((tmp_path / "a.mo").read_bytes()[:end])
        with pytest.raises(ValueError, match="c.mo cannot be read"):
            list(read_mo(tmp_path / "c.mo"))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a package of two catalogues."""
    root, files = tmp_path / "packages", []
    for part in ("catalogued", "catalogued/admin"):
        files.append(f"{part}/locale/de/LC_MESSAGES/x.mo")
        write_mo(root / files[-1], MESSAGES)
    info = root / "catalogued-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: catalogued\nVersion: 1.0\n"
    )
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    monkeypatch.syspath_prepend(root)
    return "catalogued"


def config_of(tmp_path, **changes):
    config = {"vocab_size": 300, "seq_len": 32, "source_len": 16, "batch_size": 8}
    config |= {"cache": str(tmp_path / "cache"), "validation_share": 0.2} | changes
    config = DataConfig(**config)
    fields.check(config, "data.")
    config.validate()
    return config


def test_rows_of_pairs_say_what_counts(package, tmp_path):
    config = config_of(tmp_path, source="gettext", name=package, language="de")
    data = prepare(config)
    sides = []
    for rows in (data.train, data.validation):
        decoded = []
        for tokens in rows.tokens.tolist():
            source, target = tokens[:16], tokens[17:]
            decoded.append(
                tuple(
                    data.tokenizer.decode(ids[: ids.index(END_ID)])
                    for ids in (source, target)
                )
            )
        sides.append(dict(decoded))
        assert len(sides[-1]) == len(decoded)  # each source once
    train, validation = sides
    assert len(train) + len(validation) == 64 and not set(train) & set(validation)
    assert 4 < len(validation) < 25
    assert (train | validation)["May"] == "Mai"

    batch = next(iter(train_batches(data.train, Order(0, 8), 0, 1)))
    mask = np.asarray(targets_mask(batch))
    for row, tokens in enumerate(batch["tokens"].tolist()):
        target = tokens[17 : tokens.index(END_ID, 17) + 1]
        assert np.flatnonzero(mask[row]).tolist() == list(range(16, 16 + len(target)))
        assert train[data.tokenizer.decode(until(tokens))] == data.tokenizer.decode(
            target[:-1]
        )
    total = sum(
        int(np.asarray(targets_mask(b)).sum())
        for b in validation_batches(data.validation, 8)
    )
    assert total == data.meta["validation"]["targets"]


def until(tokens):
    return tokens[: tokens.index(END_ID)]


def test_gettext_packages_and_languages_are_named(package, capsys):
    with pytest.raises(ValueError, match="'nowhere_at_all' is not an installed package"):
        gettext_corpus("nowhere_at_all", "de", 0.1)
    with pytest.raises(ValueError, match="no catalogue of data.language 'xx'; it has de"):
        gettext_corpus(package, "xx", 0.1)
    of_all = set(gettext_corpus("", "de", 0.1).pairs("train"))
    assert of_all >= set(gettext_corpus(package, "de", 0.1).pairs("train")) > set()
    (first, *_) = catalogues(package, "de")
    first.write_bytes(b"no catalogue")
    corpus = gettext_corpus(package, "de", 0.1)
    with pytest.raises(ValueError, match="x.mo is not a compiled .*on_bad_record=skip"):
        list(corpus.pairs("train"))
    corpus = gettext_corpus(package, "de", 0.1, Policy("skip"))
    assert set(corpus.pairs("train"))  # of the other catalogue
    assert capsys.readouterr().err.count("left out 1 records") == 1


def test_parallel_files(tmp_path, capsys):
    sources, targets = tmp_path / "a.txt", tmp_path / "b.txt"
    sources.write_text("".join(f"line {i}\n" for i in range(50)) + "long " * 20 + "\n")
    targets.write_text("".join(f"Zeile {i}\n" for i in range(50)) + "lang\n")
    files = {"source": "parallel", "path": str(sources), "target_path": str(targets)}
    data = prepare(config_of(tmp_path, vocab_size=257, **files))
    assert data.meta["train"]["rows"] + data.meta["validation"]["rows"] == 50
    assert "1 of" in capsys.readouterr().err

    targets.write_text("one\ntwo\n")
    with pytest.raises(ValueError, match=r"a.txt has 51 lines and .*b.txt has 2"):
        prepare(config_of(tmp_path, **files))
    with pytest.raises(ValueError, match="data.target_path is empty"):
        prepare(config_of(tmp_path, source="parallel", path=str(sources)))
    with pytest.raises(
        ValueError, match="must each be one file; they match .*b.txt, .*b.t"
    ):
        parallel_corpus(f"{tmp_path}/*.txt", str(targets), 0.2)


def test_lines_of_parallel_files_are_what_stands_in_them(tmp_path, capsys):
    """Line ends of Windows, a byte-order mark, a damaged line, compression."""
    sources, targets = tmp_path / "a.txt", tmp_path / "b.txt.gz"
    lines = [f"line {i}" for i in range(40)]
    sources.write_bytes("\ufeff".encode() + "".join(f"{x}\r\n" for x in lines).encode())
    raw = "\n".join(f"Zeile {i}\u2028\x0c" for i in range(40)).encode()
    targets.write_bytes(gzip.compress(raw.replace(b"Zeile 7", b"Z\xffile 7")))

    def pairs(policy):
        corpus = parallel_corpus(str(sources), str(targets), 0.2, policy)
        return [list(corpus.pairs(split)) for split in corpus.splits]

    with pytest.raises(ValueError, match=r"b.txt.gz, line 8 is not UTF-8.*=skip"):
        pairs(Policy())
    train, held_out = pairs(Policy("skip"))
    assert 2 < len(held_out) < 15
    assert dict(train + held_out) == {
        x: f"Zeile {i}\u2028\x0c" for i, x in enumerate(lines) if i != 7
    }
    told = capsys.readouterr().err
    assert told.count("left out 1 records") == 1 and "line 8" in told


def test_a_source_longer_than_its_part_is_refused(package, tmp_path):
    data = prepare(config_of(tmp_path, source="gettext", name=package))
    source_BS = encode_sources(data.tokenizer, ["yes", ""], 16)
    assert source_BS.shape == (2, 16) and (source_BS[1] == END_ID).all()
    with pytest.raises(ValueError, match="the source 'word .* reads at most 15"):
        encode_sources(data.tokenizer, ["yes", "word " * 30], 16)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"source": "text"}, "source_len .*16.*'text'"),
        ({"source": "gettext", "source_len": 0}, "source_len .*0.* 2 "),
        ({"source": "gettext", "source_len": 31}, "source_len .*31.* 2 "),
        ({"source": "gettext", "packing": "concat"}, "packing"),
    ],
)
def test_bad_choices_are_refused(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        config_of(tmp_path, **changes)
