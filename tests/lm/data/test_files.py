"""Files as people have them: which are read, how they are cut, what is held out."""

import gzip
import json
import os
import random
import re

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from lm.data.sources import listing, reading
from lm.data.sources.files import Policy, jsonl_corpus, parquet_corpus, text_corpus
from lm.data.sources.listing import file_digests, list_files
from lm.data.sources.reading import (
    BadRecords,
    compiled,
    cut,
    pieces,
    read_text,
    text_pieces,
)
from lm.data.sources.splits import PLACES, border

SKIP = Policy("skip")


def write(folder, files):
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def sides(corpus):
    return [[d.text for d in corpus.documents(split)] for split in ("train", "validation")]


def test_of_several_files_whole_ones_are_held_out(tmp_path):
    texts = [f"first line of {i}\nlast line of {i}\n" for i in range(200)]
    write(tmp_path, {f"{i}.txt": text for i, text in enumerate(texts)})
    train, held_out = sides(text_corpus(str(tmp_path), "", 0.1))
    assert sorted(train + held_out) == sorted(texts)
    assert 8 < len(held_out) < 35
    # The content decides, not the name or the number of the other files.
    (tmp_path / "new").mkdir()
    (tmp_path / "5.txt").rename(tmp_path / "new" / "z.txt")
    (tmp_path / "6.txt").unlink()
    again = sides(text_corpus(str(tmp_path), "", 0.1))
    assert [set(x) for x in again] == [set(x) - {texts[6]} for x in (train, held_out)]


def test_few_texts_leave_one_on_each_side_and_a_single_one_is_cut(tmp_path):
    for num in range(2, 12):
        write(tmp_path, {f"{i}.txt": f"text {i}\n" for i in range(num)})
        for share in (0.001, 0.999):
            train, held_out = sides(text_corpus(str(tmp_path), "", share))
            assert len(train) + len(held_out) == num
            assert min(len(train), len(held_out)) == 1
    single = "".join(f"line {i}\n" for i in range(100))
    for copies in (1, 3):
        folder = write(tmp_path / "one", {f"{i}": single for i in range(copies)})
        train, held_out = sides(text_corpus(str(folder), "", 0.2))
        assert [a + b for a, b in zip(train, held_out, strict=True)] == [single] * copies
        assert train[0].endswith("\n") and 0.15 < len(held_out[0]) / len(single) < 0.25


def test_the_border_is_the_nearest_that_leaves_a_text_on_each_side():
    usual, share = PLACES // 4, 0.25
    assert border([usual, usual - 1], share) == usual
    assert border([usual + 5, usual + 9, usual + 3], share) == usual + 4
    assert border([1, 7, 5], share) == 7
    assert border([5, 5], share) is border([9], share) is border([], share) is None


def test_files_to_validate_on_are_not_trained_on(tmp_path):
    write(tmp_path, {"a.txt": "to train", "held/b.txt": "to validate"})
    corpus = text_corpus(str(tmp_path), str(tmp_path / "held"), 0.5)
    assert sides(corpus) == [["to train"], ["to validate"]]
    with pytest.raises(ValueError, match="only files that are held out"):
        text_corpus(str(tmp_path / "held"), str(tmp_path / "held"), 0.5)


def test_folders_globs_links_and_odd_names(tmp_path):
    write(
        tmp_path,
        {
            "a.txt": "a", "sub/b.txt": "b", "sub/deep/c.md": "c", "sub/empty.txt": "",
            ".DS_Store": b"\0\0\0\1Bud1", ".git/config": "no", "sub/.hidden": "no",
            "odd [1].txt": "odd", "data[x]/d.txt": "d",
        },
    )  # fmt: skip
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "data[x]")
    os.mkfifo(tmp_path / "pipe")

    def found(pattern):
        files = list_files("data.path", str(tmp_path / pattern))
        return "".join(sorted(read_text(file)[0] for file in files))

    assert found("") == "abcdo"
    assert found("sub") == "abcdo"  # the link to its parent is followed once
    assert found("*.txt") == "ao" and found("**/*.txt") == "abdo"
    assert found("odd [1].txt") == "o" and found("data[x]/*") == "d"
    cases = {
        "su*": "matches only folders", "none[1]*": r"matches no file.*write \[\[\]",
        "sub/empty.txt": "empty.txt is empty", "n" * 300: "cannot be read .File name too",
    }  # fmt: skip
    for pattern, words in cases.items():
        with pytest.raises(ValueError, match=words):
            found(pattern)
    with pytest.raises(ValueError, match="'~nobody-here/x' matches no file"):
        list_files("data.path", "~nobody-here/x")


def test_compressed_files_are_read_to_their_end_or_refused(tmp_path):
    text = "Größe 漢字 line\n" * 20_000
    raw, half = text.encode(), len(text.encode()) // 2
    pack = zstandard.ZstdCompressor().compress
    whole = {
        "plain": raw, "a.gz": gzip.compress(raw[:half]) + gzip.compress(raw[half:]),
        "b.zst": pack(raw[:half]) + pack(raw[half:]),
    }  # fmt: skip
    for file in write(tmp_path, whole).iterdir():
        assert read_text(file) == text
    # Hardly packed: a part of such a file may end inside a block, and inside a character.
    dense = "".join(
        random.Random(0).choices([chr(0x4E00 + i) for i in range(9999)], k=99999)
    )
    (tmp_path / "b.zst").write_bytes(pack(dense.encode()))
    assert read_text(tmp_path / "b.zst") == dense
    # Packed 10,000 to 1: not all of it comes at once.
    (tmp_path / "b.zst").write_bytes(pack(b"a line of a log\n" * 4_000_000))
    sizes = [len(block) for block in reading.blocks(tmp_path / "b.zst")]
    assert sum(sizes) == 64_000_000 and max(sizes) < 4_000_000
    bad = {
        "cut.gz": gzip.compress(raw)[:-20], "no.gz": b"plain text",
        "cut.zst": pack(raw)[:-20], "no.zst": b"plain text",
        "utf16": text.encode("utf-16"), "wide": "plain text".encode("utf-16-le"),
        "png": b"\x89PNG\r\n\x1a\n\0\0", "late": b"a" * (1 << 20) + b"\xe6\xbc",
    }  # fmt: skip
    folder = write(tmp_path / "bad", bad)
    for file in folder.iterdir():
        with pytest.raises(ValueError, match=f"{file.name} (cannot be read|is not UTF-8)"):
            read_text(file)
    reasons = {"late": "1048576 is 0xe6", "cut.gz": "ended before", "cut.zst": "too early"}
    for name, words in reasons.items():
        with pytest.raises(ValueError, match=words):
            read_text(folder / name)


def test_an_extra_that_is_missing_is_named(tmp_path, monkeypatch):
    write(tmp_path, {"a.zst": b"x", "b.parquet": b"x"})
    for name in ("zstandard", "pyarrow"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    for corpus in (
        text_corpus(str(tmp_path / "a.zst"), "", 0.5, policy=SKIP),
        parquet_corpus(str(tmp_path / "b.parquet"), "", 0.5, "text", policy=SKIP),
    ):
        with pytest.raises(ValueError, match="needs .*pip install -r requirements-data"):
            sides(corpus)


def test_unreadable_files_stop_or_are_counted(tmp_path, capsys):
    write(tmp_path, {f"{i}.txt": f"text {i}" for i in range(9)} | {"x.bin": b"\xff\xfe"})
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    for cache in (None, tmp_path / ".cache"):
        with pytest.raises(
            ValueError, match="gone.txt cannot be read .No such .*on_bad_record"
        ):
            text_corpus(str(tmp_path), "", 0.3, policy=Policy("stop", cache))
    skip = Policy("skip", tmp_path / ".cache")
    train, held_out = sides(text_corpus(str(tmp_path), "", 0.3, policy=skip))
    assert sorted(train + held_out) == [f"text {i}" for i in range(9)]
    told = capsys.readouterr().err
    assert told.count("left out 2 records that cannot be read") == 1 and "gone" in told
    (tmp_path / "gone.txt").unlink()
    with pytest.raises(ValueError, match="x.bin is not UTF-8"):
        sides(text_corpus(str(tmp_path), "", 0.3))


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    write(tmp_path, {"a.txt": "a", "b.txt": "b", "closed/c.txt": "c"})
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match="/closed cannot be read"):
        text_corpus(str(tmp_path), "", 0.5)
    assert len(sum(sides(text_corpus(str(tmp_path), "", 0.5, policy=SKIP)), [])) == 2


BAD_LINES = {
    b'{"text": null}': "has no text under 'text'",
    b'{"other": 1}': "has no text under 'text'",
    b'["text"]': "has no text",
    b'{"text": "\\ud83d"}': r"has \\ud83d, half of a character",
    b'{"text": "a": ' + b"[" * 100_000: "is not JSON",
    b'{"text": "a", "deep": '
    + b"[" * 100_000
    + b"]" * 100_000
    + b"}": "is JSON that is nested too deeply",
    b'{"text": "caf\xe9"}': "is not UTF-8: byte",
    b"not json": "is not JSON",
}


def test_lines_that_are_no_records_stop_or_are_counted(tmp_path, capsys):
    good = [
        "\ufeff" + json.dumps({"text": "first"}), "", '{"text": ""}',
        '{"n": ' + "9" * 5000 + ', "text": "huge number"}\r',
        '{"text": "\\ud83c\\udf89 \\u2028"}', '{"text": "last"}',
    ]  # fmt: skip
    texts = ["first", "huge number", "🎉 \u2028", "last"]
    start = "\n".join(good[:-1]).encode() + b"\n"
    file = tmp_path / "a.jsonl"
    for line, words in BAD_LINES.items():
        file.write_bytes(start + line + b"\n" + good[-1].encode())
        with pytest.raises(ValueError, match=f"a.jsonl, line 6 {words}.*=skip leaves"):
            sides(jsonl_corpus(str(file), "", 0.3, "text"))
    file.write_bytes(start + b"\n".join(BAD_LINES) + b"\n" + good[-1].encode())
    corpus = jsonl_corpus(str(file), "", 0.3, "text", policy=SKIP)
    found = [d for split in corpus.splits for d in corpus.documents(split)]
    assert sorted(d.text for d in found) == sorted(texts)
    assert {d.name for d in found} == {f"{file}#{n}" for n in (1, 4, 5, 14)}
    assert capsys.readouterr().err.count(f"left out {len(BAD_LINES)} records") == 1


def test_parquet(tmp_path):
    texts = [f"text {i}" for i in range(600)]
    table = pyarrow.table({"body": texts, "n": list(range(600))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    corpus = parquet_corpus(str(tmp_path), "", 0.3, "body")
    assert sorted(sum(sides(corpus), [])) == sorted(texts)
    names = {d.name for d in corpus.documents("train") if d.text == "text 257"}
    names |= {d.name for d in corpus.documents("validation") if d.text == "text 257"}
    assert names == {f"{tmp_path}/a.parquet#258"}
    holes = pyarrow.table({"body": ["a", None, "b"]})
    pyarrow.parquet.write_table(holes, tmp_path / "b.parquet")
    write(tmp_path, {"c.parquet": b"no such thing"})
    for name, key, words in [
        ("b", "body", "b.parquet has no text in row 2"),
        ("c", "body", "c.parquet cannot be read"),
        ("a", "text", "has no column 'text'; it has body, n"),
        ("a", "n", "has no text in row 1"),
    ]:
        with pytest.raises(ValueError, match=words):
            sides(parquet_corpus(str(tmp_path / f"{name}.parquet"), "", 0.3, key))
    corpus = parquet_corpus(str(tmp_path / "*"), "", 0.3, "body", policy=SKIP)
    assert sorted(sum(sides(corpus), [])) == sorted([*texts, "a", "b"])


SEPARATORS = [  # as it is given, is it a regular expression, the same for re.split
    ("<|endoftext|>", False, r"<\|endoftext\|>"),
    (r"\n\s*\n", True, r"\n\s*\n"),
    ("^---$", True, "(?m)^---$"),
    ("^-", True, "(?m)^-"),  # not the second sign of a line, once the first is cut off
    ("\n\n", False, "\n\n"),
]


@pytest.mark.parametrize("given, is_regex, pattern", SEPARATORS)
def test_documents_of_one_file_are_cut_wherever_blocks_end(
    given, is_regex, pattern, monkeypatch
):
    text = "".join(
        f"{i} a\n--- b\n{'<|endoftext|>' * (i % 3)}\n \n\n\nc{i}\n---\n" for i in range(40)
    )
    expected = re.split(pattern, text)
    monkeypatch.setattr(reading, "SEPARATOR", 30)
    for size in (1, 7, 64, 1000, len(text)):
        blocks = (text[i : i + size] for i in range(0, len(text), size))
        assert list(cut(blocks, compiled(given, is_regex))) == [(x, True) for x in expected]
    # Longer documents than PART come in parts, cut at line ends.
    monkeypatch.setattr(reading, "PART", 8)
    blocks = (text[i : i + 7] for i in range(0, len(text), 7))
    found = list(cut(blocks, compiled(given, is_regex)))
    assert max(len(part) for part, _ in found) <= 8 + 7
    joined = "".join("|" * first + part for part, first in found)
    assert joined == "|" + "|".join(expected)


def test_separators_of_lines_are_found_whatever_the_line_ends(tmp_path, monkeypatch):
    lines = ["a", "---", "", "b", "b", "", "c", "---", "d", ""]
    for size in (1, 2, 1000):
        monkeypatch.setattr(reading, "BLOCK", size)
        for end in ("\n", "\r\n", "\r"):
            (tmp_path / "a").write_bytes(end.join(lines).encode())
            for given, is_regex, expected in (
                ("^---\n", True, ["a\n", "\nb\nb\n\nc\n", "d\n"]),
                (r"\n\n", True, ["a\n---", "b\nb", "c\n---\nd\n"]),
                (r"\r\n\r\n", True, ["a\n---", "b\nb", "c\n---\nd\n"]),
                ("\r\n\r\n", False, ["a\n---", "b\nb", "c\n---\nd\n"]),
            ):
                found = text_pieces(tmp_path / "a", compiled(given, is_regex))
                assert [piece.text for piece in found] == expected


def test_separators_in_a_corpus(tmp_path):
    write(tmp_path, {"a.txt": "one|| \n||two||three", "b.txt": "four"})
    corpus = text_corpus(str(tmp_path), "", 0.3, separator=compiled("||", False))
    found = [d for split in corpus.splits for d in corpus.documents(split)]
    names = {d.text: d.name for d in found}
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    assert names == {
        "one": f"{a}#1", "two": f"{a}#3", "three": f"{a}#4", "four": f"{b}#1"
    }  # fmt: skip
    plain = text_corpus(str(tmp_path), "", 0.3)
    assert plain.identity != corpus.identity
    for bad in ("(", "x*"):
        with pytest.raises(ValueError, match="data.separator .*(not a regular|empty text)"):
            compiled(bad, True)


def test_a_long_document_comes_in_parts_on_one_side(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PART", 1000)
    monkeypatch.setattr(reading, "BLOCK", 700)
    long = {f"{n}.txt": "".join(f"{n} {i}\n" for i in range(900)) for n in range(8)}
    corpus = text_corpus(str(write(tmp_path, long)), "", 0.4)
    whole = []
    for split in corpus.splits:
        texts = {}
        for document in corpus.documents(split):
            assert len(document.text) <= 1700
            name = document.name.split(", part ")[0]
            texts[name] = texts.get(name, "") + document.text
        whole += texts.values()
    assert sorted(whole) == sorted(long.values())  # no document lies on both sides
    single = text_corpus(str(tmp_path / "3.txt"), "", 0.25)
    train, held_out = ("".join(side) for side in sides(single))
    assert train + held_out == long["3.txt"]
    assert len(held_out) / len(train + held_out) == pytest.approx(0.25, abs=0.01)
    # A document begins with its first part that has text.
    cuts = [("a", True), (" ", True), ("b", False), ("c", False), ("d", True)]
    assert [piece.first for piece in pieces(cuts, str)] == [True, True, False, True]


def test_files_are_hashed_once_and_again_when_they_change(tmp_path, monkeypatch):
    folder, cache = tmp_path / "texts", tmp_path / "cache"
    files = sorted(write(folder, {f"{i}": f"text {i}" for i in range(3)}).iterdir())
    hashed = []
    real = listing.digest
    monkeypatch.setattr(listing, "digest", lambda f, bad: hashed.append(f) or real(f, bad))

    def digests():
        hashed.clear()
        return file_digests(files, cache, BadRecords("stop"))

    first = digests()
    assert first == [real(file, None) for file in files] and hashed == files
    # What changed a moment ago may change again with the same time: it is not kept.
    assert digests() == first and hashed == files
    monkeypatch.setattr(listing, "SETTLED", -(10**10))
    assert digests() == first and hashed == files
    assert digests() == first and hashed == []
    files[1].write_text("text X")  # of the same size
    os.utime(files[1], ns=(0, 0))
    second = digests()
    assert hashed == [files[1]] and second[1] != first[1] and second[::2] == first[::2]
    (cache / "digests.json").write_text("{damaged")
    assert digests() == second and hashed == files
    files.pop().unlink()
    files[0].write_text("another")
    digests()
    assert len(json.loads((cache / "digests.json").read_text())) == 2


def test_the_key_of_a_document_is_its_folder_below_the_common_one(tmp_path):
    names = "code/a.txt", "code/deep/b.txt", "prose/c.txt"
    write(tmp_path / "corpus", {name: f"the text of {name}" for name in names})
    write(tmp_path, {"held/d.txt": "held out"})
    corpus = text_corpus(str(tmp_path / "corpus"), str(tmp_path / "held"), 0.5)
    assert [d.key for d in corpus.documents("train")] == ["code", "code/deep", "prose"]
    assert [d.key for d in corpus.documents("validation")] == ["."]
    # The folder and the suffix of a file decide rows, so they are in the identity.
    identities = [corpus.identity]
    for old, new in (("prose/c.txt", "prose/c.py"), ("prose/c.py", "code/z.py")):
        (tmp_path / "corpus" / old).rename(tmp_path / "corpus" / new)
        moved = text_corpus(str(tmp_path / "corpus"), str(tmp_path / "held"), 0.5)
        identities.append(moved.identity)
    assert identities[0] != identities[1] != identities[2]
    (tmp_path / "corpus").rename(tmp_path / "elsewhere")
    moved = text_corpus(str(tmp_path / "elsewhere"), str(tmp_path / "held"), 0.5)
    assert moved.identity == identities[2]
