"""Score the targets that a run writes for its validation sources: BLEU and chrF.

python -m experiments.score --workdir=runs/a [--num=500 --beam=4 --length_penalty=0.6]

Prints the scores of the model and, for comparison, of two outputs that need no model: the
source itself, and the commonest target of the training rows. Writes score.json, and
outputs.jsonl with the source, the reference and the output of each pair, into the workdir.
sacrebleu (Post 2018) computes the scores: pip install -r requirements-pairs.txt.
"""

import json

from absl import flags

from experiments.generation.method import chosen_method, define_flags
from experiments.generation.targets import check_scorer, score
from experiments.processes import join
from experiments.processes.files import json_line, write_if_possible
from experiments.processes.messages import is_main_process, user_errors
from experiments.run import startup
from experiments.run.restore import define_checkpoint, load_run, run_data
from experiments.run.workdir import family_name

join.define_flags()
define_flags()
WORKDIR = startup.define_workdir()
CHECKPOINT = define_checkpoint()
NUM = flags.DEFINE_integer("num", 500, "Validation pairs to score; 0: all.", lower_bound=0)


def main() -> None:
    with user_errors():
        workdir = startup.workdir(WORKDIR)
        method = chosen_method()
        check_scorer()
        join.start_jax()
        config, task, params, step, _ = load_run(workdir, CHECKPOINT.value)
        if task.encode is None:
            raise ValueError(
                f"{workdir} is of the {family_name(config)} family, which has no decoder "
                "that writes targets of sources; give a run of the seq2seq family"
            )
        data = run_data(workdir, config)
    table, pairs = score(config, task, params, data, NUM.value, method)
    if not is_main_process():
        return
    print(f"{len(pairs)} validation pairs, step {step}, {method}")
    for name, values in table.items():
        print(f"{name:20} BLEU {values['bleu']:6.2f}   chrF {values['chrf']:6.2f}")
    result = {"step": step, "pairs": len(pairs), "method": str(method), "scores": table}
    write_if_possible(workdir / "score.json", json_line(result, indent=2))
    names = ("source", "reference", "output")
    records = (dict(zip(names, pair, strict=True)) for pair in pairs)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_if_possible(workdir / "outputs.jsonl", "".join(lines))


if __name__ == "__main__":
    startup.run(main)
