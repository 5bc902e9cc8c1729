"""Continue prompts with a trained run.

python -m experiments.generate --workdir=runs/a --prompt="def " --temperature=0.8 --top_k=50
python -m experiments.generate --workdir=runs/a --prompts_file=prompts.txt --temperature=0
"""

from absl import flags

from experiments import startup
from experiments.evaluate import CHECKPOINT, load_run
from lm.data.corpus import list_files, read_text
from lm.data.tokenizer import END_ID, load_tokenizer
from lm.decoding import Sampling, generate

PROMPT = flags.DEFINE_string("prompt", None, "The text to continue.")
PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "A file, a prompt a line.")
NUM_NEW = flags.DEFINE_integer("max_new_tokens", 100, "Tokens to add at the most.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 is greedy.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Keep the k likeliest tokens; 0: all.")
TOP_P = flags.DEFINE_float("top_p", 1.0, "Keep the likeliest tokens of this share.")
SEED = flags.DEFINE_integer("seed", 0, "Of the sampling.")


def read_prompts() -> list[str]:
    if (PROMPT.value is None) == (PROMPTS_FILE.value is None):
        raise ValueError("give either --prompt or --prompts_file")
    if PROMPT.value is not None:
        return [PROMPT.value]
    (file,) = list_files("--prompts_file", PROMPTS_FILE.value)
    return read_text(file).splitlines()


def encode_prompts(tokenizer, prompts: list[str], num_new: int, context: int):
    """Encode, each after the end-of-text mark that starts a document."""
    encoded = [[END_ID, *tokenizer.encode(prompt).ids] for prompt in prompts]
    longest = max(map(len, encoded))
    if num_new < 1:
        raise ValueError(f"--max_new_tokens is {num_new}; it must be at least 1")
    if longest + num_new > context:
        raise ValueError(
            f"the longest prompt has {longest} tokens and --max_new_tokens adds "
            f"{num_new}, more than the context of {context}; shorten one of them"
        )
    return encoded


def main() -> None:
    with startup.user_errors():
        workdir = startup.workdir()
        prompts = read_prompts()
        sampling = Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value)
        sampling.validate()
        startup.start_jax()
        config, task, params, _, _ = load_run(workdir, CHECKPOINT.value)
        tokenizer = load_tokenizer(workdir / "tokenizer.json")
        encoded = encode_prompts(tokenizer, prompts, NUM_NEW.value, config.data.seq_len)
    new = generate(task, params, encoded, NUM_NEW.value, sampling, SEED.value)
    for prompt, tokens in zip(prompts, new, strict=True):
        print(prompt + tokenizer.decode(tokens))
        if len(prompts) > 1:
            print("-" * 80)


if __name__ == "__main__":
    startup.run(main)
