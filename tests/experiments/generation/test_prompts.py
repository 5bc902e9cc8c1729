"""Prompts of a file and of a flag: a prompt a line, whatever else stands in it."""

import pytest
from tokenizers import Tokenizer, models

from configs.base import Experiment
from experiments.generation.prompts import encode_inputs, read_prompts

ODD = "a\u2028b\x0cc\x85d\x0be\x1cf\rg"  # str.splitlines cuts it six times


@pytest.mark.parametrize(
    "written, prompts",
    [
        ("def \nreturn \n", ["def ", "return "]),
        ("def \nreturn ", ["def ", "return "]),
        ("\ufeffdef \r\n\r\nreturn\r\n", ["def ", "", "return"]),
        (f"{ODD}\nx\n", [ODD, "x"]),
        ("\n", [""]),
        ("a\n\ufeffb\n", ["a", "\ufeffb"]),
    ],
)
def test_a_prompt_is_a_line(tmp_path, written, prompts):
    file = tmp_path / "prompts"
    file.write_bytes(written.encode())
    assert read_prompts(file) == prompts


def test_files_without_prompts_are_refused(tmp_path):
    file = tmp_path / "prompts"
    for raw, words in [
        (b"", "is empty"),
        ("\ufeff".encode(), "is empty"),
        (b"caf\xe9", "byte 3 is 0xe9"),
    ]:
        file.write_bytes(raw)
        with pytest.raises(ValueError, match=words):
            read_prompts(file)
    for path, words in [(tmp_path, "is a folder"), (tmp_path / "*", "is missing")]:
        with pytest.raises(ValueError, match=f"--prompts_file=.*{words}"):
            read_prompts(path)


@pytest.fixture
def letters():
    """A tokenizer that makes a token of each letter."""
    return Tokenizer(models.BPE({"<end>": 0, "a": 1, "b": 2}, []))


def test_prompts_that_do_not_fit_are_refused(letters):
    config = Experiment()
    config.data.seq_len = 8
    assert encode_inputs(config, letters, ["abab", "b"], 3).prompts == [
        [0, 1, 2, 1, 2], [0, 2],
    ]  # fmt: skip
    for prompt, num_new, words in [
        ("abab", 4, "has 5 tokens and --max_new_tokens adds 4, .* context of 8"),
        ("a", 10**30, "more than the context of 8"),
        ("a", 0, "--max_new_tokens is 0"),
        ("a", -1, "--max_new_tokens is -1"),
        ("a\udcff", 1, r"'a\\udcff' is not UTF-8 after 1 letters"),
    ]:
        with pytest.raises(ValueError, match=words):
            encode_inputs(config, letters, ["b", prompt], num_new)


def test_a_target_ends_within_its_part_of_the_row(letters):
    config = Experiment()
    config.data.seq_len, config.data.source_len = 8, 3
    found = encode_inputs(config, letters, ["ab", "b"], 99)
    assert found.prompts == [[0], [0]] and found.num_new == 4
    assert found.source_BS.tolist() == [[1, 2, 0], [2, 0, 0]]
    with pytest.raises(ValueError, match="has 3 tokens, and the model reads at most 2"):
        encode_inputs(config, letters, ["aba"], 1)
