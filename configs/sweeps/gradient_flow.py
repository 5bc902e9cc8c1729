"""Where do gradients vanish or explode? Depth, activation, initialiser, clipping, model.

The members are, in this order: every model with 8 layers, with each activation and
initialiser, clipped; one of each kind with fewer layers; one of each kind not clipped;
residuals without norms, and norms without residuals. LSTM and GRU have no choice of
activation, and only transformers have residuals and norms. The optimizer is plain SGD,
because Adam would divide by the size of the gradients, which is what is measured.

Command:  python -m experiments.sweep --sweep=configs/sweeps/gradient_flow.py \
              --workdir=runs/gradient_flow
          python -m experiments.report runs/gradient_flow
Cost:     63 members of 20.5 k tokens, about 0.1 M parameters each
"""

from configs.sweeps.combine import Member, distinct, each, product

TRANSFORMER = {"config": "configs/tiny.py", "model.num_heads": 2}
RECURRENT = {"config": "configs/lstm.py"}
WITHOUT_RESIDUAL, WITHOUT_NORM = {"model.residual": False}, {"model.norm": "none"}
BOTH = TRANSFORMER | {"model.residual": True, "model.norm": "rmsnorm"}
NEITHER = TRANSFORMER | WITHOUT_RESIDUAL | WITHOUT_NORM
RNN = RECURRENT | {"model.cell": "rnn"}
GATED = product([RECURRENT], each("model.cell", "lstm", "gru"))

ACTIVATIONS = each("model.activation", "sigmoid", "tanh", "relu", "gelu")
INITIALIZERS = each("model.init", "naive", "xavier", "he")
DEEP = [{"model.num_layers": 8}]
SHALLOW = each("model.num_layers", 2, 4)
CLIPPED, FREE = [{"optim.clip_norm": 1.0}], [{"optim.clip_norm": 0.0}]
HE = [{"model.init": "he"}]
RELU = {"model.activation": "relu"}
FIXED = {
    "trace_norms": True,
    "steps": 20,
    "eval_every": 0,
    "save_every": 0,
    "data.vocab_size": 512,
    "data.seq_len": 64,
    "data.batch_size": 16,
    "model.width": 32,
    "optim.name": "sgd",
    "optim.learning_rate": 0.3,
    "optim.weight_decay": 0.0,
    "optim.schedule": "constant",
    "optim.warmup_steps": 0,
    "devices": 1,
}


def get_sweep() -> list[Member]:
    one_each = [RNN | RELU, *GATED, BOTH | RELU, NEITHER | RELU]
    halves = [BOTH | RELU | WITHOUT_RESIDUAL, BOTH | RELU | WITHOUT_NORM]
    members = [
        *product([RNN, BOTH, NEITHER], ACTIVATIONS, INITIALIZERS, DEEP, CLIPPED),
        *product(GATED, INITIALIZERS, DEEP, CLIPPED),
        *product(one_each, HE, SHALLOW, CLIPPED),
        *product(one_each, HE, DEEP, FREE),
        *product(halves, INITIALIZERS, DEEP, CLIPPED),
    ]
    return product([FIXED], distinct(members))
