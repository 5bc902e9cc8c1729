"""What uneven text costs, and what helps: the same small model under many ways to train it.

python -m experiments.studies.uneven --studies=poisoned,partitions,mixture,augmentation \
    --devices=4 [--seeds=3] [--only='clean,poisoned']

Writes the corpora to --folder, made from what is installed; the same environment gives the
same ones. Adds a line for each member and seed to results/uneven.jsonl, skips those that
are there, and fills in the tables of the studies' pages. A line has the loss on the
held-out text, on that of the rare kind, on the training text as it is (not damaged), and
how unlike the shards are.
"""

import collections
import copy
import pathlib

import jax
import numpy as np
from absl import flags

from configs import fields
from configs.base import Experiment
from configs.sweeps.combine import Member
from experiments.processes import join
from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.run.check import check, check_data
from experiments.run.evaluation import Evaluator
from experiments.run.trial import build_trial
from experiments.studies.uneven.corpora import write_corpora
from experiments.studies.uneven.members import STUDIES, Study, base_config
from experiments.studies.uneven.tables import table
from experiments.sweeps.pages import check_names, fill
from experiments.sweeps.results import Line, measure_missing, read
from lm.data.prepare import prepare
from lm.data.rows.skew import skew
from lm.data.rows.store import Rows

join.define_flags()
CHOSEN = flags.DEFINE_list("studies", list(STUDIES), "Names of studies.")
ONLY = flags.DEFINE_list("only", [], "Names of members; empty: all of the studies.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of each member: 0, 1, ...", lower_bound=1)
FOLDER = flags.DEFINE_string("folder", "runs/uneven", "Folder of the corpora.")
RESULTS = flags.DEFINE_string(
    "results", "results/uneven.jsonl", "File of results, to which lines of JSON are added."
)
PAGES = flags.DEFINE_string(
    "pages", "docs/questions", "Folder of the pages whose tables to fill in; empty: none."
)
TRAIN_BATCHES = 20  # of training text that the model is evaluated on


def chosen(study: Study) -> list[str]:
    return [name for name in study.members if not ONLY.value or name in ONLY.value]


def check_flags() -> None:
    """Raise ValueError for unknown names, or pages that have no place for a table."""
    for name in CHOSEN.value:
        if name not in STUDIES:
            raise ValueError(f"--studies={name}: choose among {', '.join(STUDIES)}")
    known = [name for study in CHOSEN.value for name in STUDIES[study].members]
    for name in ONLY.value:
        if name not in known:
            raise ValueError(f"--only={name}: choose among {'; '.join(known)}")
    for name in CHOSEN.value if PAGES.value else ():
        check_names(page(STUDIES[name]), {name})


def page(study: Study) -> pathlib.Path:
    return pathlib.Path(PAGES.value, f"{study.page}.md")


def member_config(study: Study, member: Member, seed: int) -> Experiment:
    folder = pathlib.Path(FOLDER.value)
    member = dict(member)
    corpus = folder / member.pop("data.path", study.corpus)
    paths: Member = {
        "seed": seed,
        "data.path": str(corpus / "train"),
        "data.validation_path": str(corpus / "validation"),
        "data.tokenizer_file": str(folder / "tokenizer.json"),
    }
    if study.shifted:
        paths["data.shifted_path"] = str(folder / study.shifted / "validation")
    return fields.override(copy.deepcopy(base_config()), paths | member)


def unlike(rows: Rows, vocab_size: int) -> Line:
    """Return how unlike the tokens of the shards are, as a multiple of chance."""
    sizes = [sum(strata) for strata in rows.parts or ()]
    if len(sizes) < 2:
        return {}
    shards = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    found = skew(
        np.array(
            [np.bincount(rows.tokens[shard].ravel(), None, vocab_size) for shard in shards]
        )
    )
    return {"divergence": found.divergence, "multiple": found.multiple}


def measure(config: Experiment) -> Line:
    """Train, then evaluate on all held-out rows and on some of training."""
    mesh = check(config)
    data = prepare(config.data)
    check_data(config, data, mesh)
    vocab_size = data.tokenizer.get_vocab_size()
    trial = build_trial(config, vocab_size, mesh, data.train)
    evaluate = Evaluator(
        trial.task, data.tokenizer, data.validation, config.data.batch_size, mesh
    )
    ((_, state),) = collections.deque(trial.train(data.train), maxlen=1)
    params = trial.program.params(state)
    found = evaluate(params)
    line = {"loss": found["loss"], "bits_per_byte": found["bits_per_byte"]}
    line["train"] = evaluate(params, TRAIN_BATCHES, data.train)["loss"]
    if data.shifted is not None:
        line["rare"] = evaluate(params, rows=data.shifted)["loss"]
    epochs = config.steps * config.data.batch_size / len(data.train.tokens)
    return line | unlike(data.train, vocab_size) | {"epochs": epochs}


def main() -> None:
    file = pathlib.Path(RESULTS.value)
    with user_errors():
        check_flags()
        join.start_jax()
        write_corpora(pathlib.Path(FOLDER.value))
        for name in CHOSEN.value:
            for member in STUDIES[name].members.values():
                check(member_config(STUDIES[name], member, 0))
    for name in CHOSEN.value:
        study = STUDIES[name]
        heads = [
            {
                "study": name,
                "member": member,
                "seed": seed,
                "steps": member_config(study, study.members[member], seed).steps,
                "devices": len(jax.devices()),
            }
            for seed in range(SEEDS.value)
            for member in chosen(study)
        ]

        def measured(head: Line, study: Study = study) -> Line:
            member = study.members[head["member"]]
            return measure(member_config(study, member, head["seed"]))

        measure_missing(file, heads, measured)
        if PAGES.value:
            with user_errors():
                fill(page(study), {name: table(name, read(file))})


if __name__ == "__main__":
    startup.run(main)
