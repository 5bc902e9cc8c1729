"""The command that looks at a corpus, on folders as people have them."""

import json

from tests.experiments.runs import ROOT, command, run, run_together, write_corpus


def inspect(folder, path, *flags, check=True):
    data = {"source": "text", "path": path, "cache": folder / "cache", "vocab_size": 300}
    return run(
        "inspect", f"--config={ROOT}/configs/tiny.py", f"--out={folder}/out", *flags,
        *(f"--config.data.{name}={value}" for name, value in data.items()), check=check,
    )  # fmt: skip


def test_a_folder_of_text(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", 12)
    for copy in ("copy.txt", "<b>copy|2.txt"):
        (corpus / copy).write_text((corpus / "3.txt").read_text())
    (corpus / "mojibake.txt").write_text("Ã¤rger Ã¼ber schÃ¶ne GrÃ¼ÃŸe\n" * 9)
    told = inspect(tmp_path, corpus, "--shards=4")
    assert "inspect.html" in told.stdout and "documents" in told.stderr  # the progress
    found = json.loads((tmp_path / "out" / "inspect.json").read_text())
    assert found["documents"] >= 15 and found["exact_duplicates"] >= 1
    assert len(found["skew"]["hash"]["tokens"]) == 4
    (mojibake,) = {x["document"] for x in found["anomalies"] if x["kind"] == "mojibake"}
    assert mojibake == f"{corpus}/mojibake.txt"
    html = (tmp_path / "out" / "inspect.html").read_text("utf-8")
    assert "&lt;b&gt;copy|2.txt" in html and "<b>copy" not in html


def test_what_is_no_corpus_is_told_in_a_line(tmp_path):
    (tmp_path / "empty").mkdir()
    result = inspect(tmp_path, tmp_path / "empty", check=False)
    assert result.returncode == 2 and "matches no file" in result.stderr
    (tmp_path / "empty" / "blank.txt").write_text("\n \n")
    result = inspect(tmp_path, tmp_path / "empty", check=False)
    assert result.returncode == 2 and "has no document with text" in result.stderr
    refused = {
        "--out=": "no --out given",
        "--config.data.source=gettext": "gives pairs of texts; expected a source of",
    }
    config = f"--config={ROOT}/configs/translation.py"
    commands = [(command("inspect", config, "--out=x", flag), {}) for flag in refused]
    results = run_together(commands, check=False)
    for result, words in zip(results, refused.values(), strict=True):
        assert result.returncode == 2 and words in result.stderr
        assert "Traceback" not in result.stderr
