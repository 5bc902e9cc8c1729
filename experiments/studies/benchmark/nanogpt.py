"""nanoGPT's side of a benchmark: its model, its optimizer, its step, in PyTorch.

PYTORCH_PYTHON experiments/studies/benchmark/nanogpt.py NANOGPT_FOLDER VARIANT \
    COMPUTE VOCAB WIDTH LAYERS HEADS T B

A script for an environment that has PyTorch but not JAX. VARIANT is eager, fused (AdamW) or
compiled; COMPUTE is float32 or bfloat16 (autocast, as in its train.py). It uses a GPU if
there is one. turns.py describes its input and output.
"""

import sys

import numpy as np
import torch
from turns import peak_of_process, serve  # a script can import the files beside it


def main(folder: str, variant: str, compute: str, *numbers: str) -> None:
    sys.path.insert(0, folder)
    from model import GPT, GPTConfig

    vocab_size, width, layers, heads, seq_len, batch_size = map(int, numbers)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # As train.py sets them.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    config = GPTConfig(seq_len, vocab_size, layers, heads, width)
    model = GPT(config).to(device)
    optimizer = model.configure_optimizers(0.1, 3e-4, (0.9, 0.95), device)
    if variant == "fused":
        groups = [
            {"params": g["params"], "weight_decay": g["weight_decay"]}
            for g in optimizer.param_groups
        ]
        optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)
    forward = torch.compile(model) if variant == "compiled" else model
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(0, vocab_size, (batch_size, seq_len + 1)))
    tokens = tokens.to(device)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    rounded = torch.autocast(device, torch.bfloat16, enabled=compute == "bfloat16")

    def step() -> float:
        with rounded:
            _, loss = forward(inputs, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    serve(step, torch.cuda.max_memory_allocated if device == "cuda" else peak_of_process)


if __name__ == "__main__":
    main(*sys.argv[1:])
