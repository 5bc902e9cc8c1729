"""The study of generation: texts that were written in parts are judged."""

import json

import pytest

from tests.experiments.runs import run, small, write_corpus


def test_the_judge_reads_texts_and_beginnings_of_held_out_ones(tmp_path):
    write_corpus(tmp_path / "corpus", 30)
    flags = small(tmp_path, **{"data.seq_len": 128, "steps": 2})
    run("train", *flags, f"--workdir={tmp_path}/run", "--devices=1")
    results = tmp_path / "results.jsonl"  # the speeds are not of interest here
    heads = [{"member": f"1 devices, {n} slots", "slots": n} for n in (1, 4, 16)]
    about = {"measure": "spread", "processes": 1, "devices": 1}
    results.write_text("".join(json.dumps(about | head) + "\n" for head in heads))
    runs = [f"--workdir={tmp_path}/run", f"--judge={tmp_path}/run"]
    run("studies.generation", *runs, "--devices=1", f"--results={results}", "--page=")

    lines = [json.loads(line) for line in results.open()][len(heads) :]
    found = {line["member"]: line for line in lines}
    assert set(found) == {"in turn", "in parts", "held-out text"}
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for line in lines:
        assert line["judge_loss"] == pytest.approx(summary["val_loss"], rel=1e-4)
        assert line["writer_loss"] == line["judge_loss"]
    # The model knows next to nothing yet, and the corpus is of letters alone.
    given = found["held-out text"]
    assert given["bytes"] <= found["in turn"]["bytes"] and "seconds" not in given
    bits = summary["val_bits_per_byte"]
    assert given["bits_per_byte"] == pytest.approx(bits, rel=0.05)
    assert found["in parts"]["seconds"] > 0
