"""The command that measures strategies: it fills in its page, or says what is missing."""

import re

from tests.experiments.runs import ROOT, run

PAGE = ROOT / "docs" / "strategies.md"


def test_without_a_measure_the_page_is_filled_in_from_the_results(tmp_path):
    page = tmp_path / "strategies.md"
    text = PAGE.read_text()
    emptied = re.sub(r"(<!-- table \S+-\d+ -->\n).*?(?=<!-- end)", r"\1", text, flags=re.S)
    assert len(emptied) < len(text) - 3000
    page.write_text(emptied)
    run("studies.strategies", "--measure=", f"--page={page}")
    assert page.read_text() == text
    pictures = {file.name for file in tmp_path.glob("*.png")}
    assert pictures == {"strategies-200.png"}


def test_a_table_without_a_place_ends_before_anything_is_measured(tmp_path):
    results = tmp_path / "results.jsonl"
    flags = ["--config=configs/tiny.py", "--devices=2", f"--results={results}"]
    result = run(
        "studies.strategies", *flags, "--config.steps=50", "--only=int8", check=False
    )
    assert result.returncode == 2
    assert f"{PAGE.relative_to(ROOT)} has no place for the table" in result.stderr
    assert not results.exists()
    result = run("studies.strategies", *flags, "--measure=", check=False)
    assert result.returncode == 2 and "holds no results" in result.stderr
