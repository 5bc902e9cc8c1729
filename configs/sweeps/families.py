"""The families of language models on the same text, tokenizer and number of tokens.

Command:  python -m experiments.sweep --sweep=configs/sweeps/families.py \
              --workdir=runs/families
          python -m experiments.studies.families runs/families     # fills docs/families.md
          The two members of translation.py need requirements-pairs.txt.

Encoder-decoders learn from pairs of texts, for as many steps as their configs say.
"""

from configs.sweeps.combine import Member, each, product

ROWS = 12_800  # rows of 128 targets; configs/tiny.py sees as many in its 400 steps


def get_sweep() -> list[Member]:
    # Counting does not need many steps: give it the same rows in fewer, larger batches.
    counted = {
        "config": "configs/ngram.py",
        "data.batch_size": 1280,
        "steps": ROWS // 1280,
    }
    recurrent = {"config": "configs/lstm.py"}
    by_gradient = {
        "model.training": "gradient",
        "optim.name": "adamw",
        "optim.learning_rate": 0.1,
        "optim.forgetting": 0.0,
        "optim.weight_decay": 0.0,
        "optim.schedule": "cosine",
        "optim.warmup_steps": 20,
        "data.batch_size": 32,
        "steps": ROWS // 32,
    }
    members = [
        *product([counted], each("model.order", 1, 2, 3, 4, 5)),
        {"config": "configs/hmm.py"},
        {"config": "configs/hmm.py"} | by_gradient,
        *product([recurrent], each("model.cell", "rnn", "gru", "lstm")),
        {"config": "configs/tiny.py"},
        *product(
            [{"config": "configs/translation.py"}],
            each("model.kind", "recurrent", "transformer"),
        ),
    ]
    return product([{"devices": 8, "parallel.strategy": "shard_map"}], members)
