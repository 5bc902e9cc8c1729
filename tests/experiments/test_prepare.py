"""The command that only prepares text."""

import json

from tests.experiments.runs import ROOT, command, run, run_together, small, write_corpus


def test_what_it_prepares_is_what_a_run_finds(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    (corpus / "copy.txt").write_text((corpus / "3.txt").read_text())
    num_bytes = sum(file.stat().st_size for file in corpus.iterdir())
    told = run("prepare", *small(tmp_path)).stdout
    (meta,) = (tmp_path / "cache").glob("rows/*/meta.json")
    made = json.loads(meta.read_text())
    assert made["bytes"] == num_bytes
    kept = sum(made["documents"].values())
    assert kept == 12 and "exact_dedup dropped 1" in told
    assert f"{made['documents']['train']} documents" in told
    assert "MB/s" in told and made["fingerprint"] in told
    before = meta.stat().st_mtime_ns
    again = run("prepare", *small(tmp_path)).stdout
    assert "the cache had them already" in again and "MB/s" not in again
    assert meta.stat().st_mtime_ns == before


def test_flags_that_do_not_fit_together(tmp_path):
    pairs = [f"--config={ROOT}/configs/translation.py", "--executor=ray"]
    write_corpus(tmp_path / "corpus", 2)
    flags = small(tmp_path)
    closed = "--ray_address=127.0.0.1:9"  # the port of a service that nobody runs
    refused = {
        "no --config given": [],
        "--executor=ray has no effect with data.source=gettext": pairs,
        "has no effect with --executor=local; give --executor=ray": [*flags, closed],
        "--workers=2 has no effect on the cluster": [
            *(*flags, closed, "--executor=ray", "--workers=2"),
        ],
    }
    results = run_together(
        [(command("prepare", *each), {}) for each in refused.values()], check=False
    )
    for result, words in zip(results, refused, strict=True):
        assert result.returncode == 2 and words in result.stderr
        assert "Traceback" not in result.stderr
