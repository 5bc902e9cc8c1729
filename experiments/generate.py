"""Continue prompts with a trained run, or write the targets of sources.

python -m experiments.generate --workdir=runs/a --prompt="def " --temperature=0.8 --top_k=50
python -m experiments.generate --workdir=runs/a --prompts_file=prompts.txt --temperature=0
python -m experiments.generate --workdir=runs/a --prompts_file=prompts.txt --devices=8
python -m experiments.generate --workdir=runs/a --prompt="x = " --beam=4 --length_penalty=1

Prints each prompt and its continuation. A model with an encoder takes each prompt as a
source and writes its target. Sampling (and greedy decoding, --temperature=0) spreads the
texts over the devices, --slots at once on each; see
experiments/generation/continuous_batching.py. The number of devices does not change a text.
"""

import pathlib

from absl import flags

from experiments.generation.continuous_batching import Batching, generate_spread
from experiments.generation.method import chosen_method, define_flags
from experiments.generation.prompts import continuations, encode_inputs, read_prompts
from experiments.processes import join
from experiments.processes.messages import is_main_process, user_errors
from experiments.run import startup
from experiments.run.restore import define_checkpoint, load_run
from lm.beam import Beam
from lm.data.tokenizer import load_tokenizer

join.define_flags()
define_flags()
WORKDIR = startup.define_workdir()
CHECKPOINT = define_checkpoint()
PROMPT = flags.DEFINE_string("prompt", None, "The text to continue.")
PROMPTS_FILE = flags.DEFINE_string(
    "prompts_file", None, "File of prompts, one on each line."
)
NUM_NEW = flags.DEFINE_integer("max_new_tokens", 100, "Largest number of tokens to add.")
SLOTS = flags.DEFINE_integer("slots", 8, "Texts that a device writes at once.")
CHUNK = flags.DEFINE_integer("chunk", 32, "Tokens of a prompt to read at once.")
SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the sampling.", lower_bound=0, upper_bound=2**32 - 1
)


def given_prompts() -> list[str]:
    if (PROMPT.value is None) == (PROMPTS_FILE.value is None):
        raise ValueError("give either --prompt or --prompts_file")
    if PROMPT.value is not None:
        return [PROMPT.value]
    return read_prompts(pathlib.Path(PROMPTS_FILE.value).expanduser())


def main() -> None:
    with user_errors():
        workdir = startup.workdir(WORKDIR)
        prompts = given_prompts()
        method = chosen_method()
        batching = Batching(SLOTS.value, CHUNK.value)
        batching.validate()
        join.start_jax()
        config, task, params, _, mesh = load_run(workdir, CHECKPOINT.value)
        tokenizer = load_tokenizer(workdir / "tokenizer.json")
        inputs = encode_inputs(config, tokenizer, prompts, NUM_NEW.value)
    if isinstance(method, Beam):
        texts = continuations(task, params, tokenizer, inputs, method, SEED.value)
    else:
        given = task, params, inputs.prompts, inputs.num_new, method, SEED.value
        new = generate_spread(*given, mesh, batching, inputs.source_BS)
        texts = tokenizer.decode_batch(new)
    if is_main_process():
        for prompt, text in zip(prompts, texts, strict=True):
            print(text if config.data.source_len else prompt + text)
            if len(prompts) > 1:
                print("-" * 80)


if __name__ == "__main__":
    startup.run(main)
