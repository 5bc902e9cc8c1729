"""The command that looks at a corpus, on folders as people have them."""

import json

from tests.experiments.runs import ROOT, command, run, run_together, write_corpus


def flags(folder, path, *more):
    data = {"source": "text", "path": path, "cache": folder / "cache", "vocab_size": 300}
    return [
        f"--config={ROOT}/configs/tiny.py", f"--out={folder}/out", *more,
        *(f"--config.data.{name}={value}" for name, value in data.items()),
    ]  # fmt: skip


def test_a_folder_of_text(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", 12)
    for copy in ("copy.txt", "<b>copy|2.txt"):
        (corpus / copy).write_text((corpus / "3.txt").read_text())
    (corpus / "mojibake.txt").write_text("Ã¤rger Ã¼ber schÃ¶ne GrÃ¼ÃŸe\n" * 9)
    told = run("inspect", *flags(tmp_path, corpus, "--shards=4"))
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
    refused = {
        "matches no file": flags(tmp_path, tmp_path / "empty"),
        "no --out given": [f"--config={ROOT}/configs/tiny.py"],
    }
    commands = [(command("inspect", *each), {}) for each in refused.values()]
    results = run_together(commands, check=False)
    for result, words in zip(results, refused, strict=True):
        assert result.returncode == 2 and words in result.stderr
        assert "Traceback" not in result.stderr
