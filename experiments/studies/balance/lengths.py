"""How equal the tokens of devices are, on the rows of real text in its real order."""

import dataclasses

import numpy as np

from experiments.run.startup import read_config_file
from experiments.run.steps import row_order
from lm.data.prepare import prepare
from lm.data.rows.order import train_batches

STEPS, DEVICES = 50, 8
# Whole documents: at 8,192 tokens a row, most are not cut.
DOCUMENTS = {"packing": "none", "seq_len": 8192}
CASES = {
    "documents": ("configs/tiny.py", DOCUMENTS),
    "documents, equal_tokens": ("configs/tiny.py", DOCUMENTS | {"equal_tokens": True}),
    "pairs": ("configs/translation.py", {}),
    "pairs, equal_tokens": ("configs/translation.py", {"equal_tokens": True}),
}


def measure_lengths(case: str) -> dict[str, float]:
    """Return the most tokens of a device over the mean: the mean over steps, and the worst.

    A batch has 64 longest rows, 8 or more for each of 8 devices.
    """
    file, changes = CASES[case]
    config = read_config_file(file)
    data = dataclasses.replace(config.data, batch_size=64, **changes)
    rows = prepare(data).train
    found = {}
    for level in (False, True):
        own = dataclasses.replace(config, data=dataclasses.replace(data, level=level))
        ratios = []
        for batch in train_batches(rows, row_order(own), 0, STEPS):
            tokens = np.count_nonzero(batch["segments"], axis=1)
            sums = tokens.reshape(DEVICES, -1).sum(1)
            ratios.append(sums.max() / sums.mean())
        name = "level" if level else "as they come"
        found |= {name: float(np.mean(ratios)), f"{name}, worst": float(np.max(ratios))}
    return found
