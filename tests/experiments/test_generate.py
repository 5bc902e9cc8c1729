"""Flags of `generate` and `score` that cannot work end in a line, with nothing read."""

from tests.experiments.runs import command, run_together
from tests.experiments.test_bad_input import assert_refused

BAD = {  # flags -> what the message must say
    "generate --temperature=nan": "temperature is nan",
    "generate --temperature=inf": "temperature is inf",
    "generate --temperature=-1": "temperature is -1.0",
    "generate --temperature=warm": "temperature=warm",
    "generate --top_k=-1": "top_k is -1",
    "generate --top_k=1.5": "top_k=1.5",
    "generate --top_p=0": "top_p is 0.0",
    "generate --top_p=nan": "top_p is nan",
    "generate --seed=-1": "seed=-1",
    "generate --seed=4294967296": "[0, 4294967295]",
    "generate --beam=-1": "beam=-1",
    "generate --beam=1000000000": "[0, 1024]",
    "generate --beam=2 --length_penalty=nan": "length_penalty is nan",
    "generate --beam=2 --length_penalty=-1": "length_penalty is -1.0",
    "generate --beam=2 --length_penalty=1000": "length_penalty is 1000.0; expected 0 to 8",
    "generate --beam=2 --top_k=3": "--top_k is 3, but a beam search does not read it",
    "generate --length_penalty=1": "--length_penalty is 1.0, but only a beam search",
    "generate --slots=0": "slots is 0",
    "generate --slots=-3": "slots is -3",
    "generate --chunk=0": "chunk is 0",
    "generate --prompts_file=lm": "give either --prompt or --prompts_file",
    "score --num=-1": "num=-1",
    "score --top_p=2": "top_p is 2.0",
    "score --beam=2000": "[0, 1024]",
}


def test_flags_that_cannot_work_end_in_a_line():
    commands = []
    for line in BAD:
        module, *flags = line.split()
        prompt = ["--prompt=def"] if module == "generate" else []
        commands.append((command(module, "--workdir=/nowhere", *prompt, *flags), {}))
    results = run_together(commands, check=False)
    for result, words in zip(results, BAD.values(), strict=True):
        assert_refused(result, words)


def test_a_folder_of_prompts_is_refused():
    flags = ["--workdir=/nowhere", "--prompts_file=lm"]
    (result,) = run_together([(command("generate", *flags), {})], check=False)
    assert_refused(
        result, "--prompts_file=lm is a folder; give a file with one prompt a line"
    )
