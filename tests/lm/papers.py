"""Every optimizer as its paper writes it, in numpy, one parameter at a time.

A rule takes the config c, the gradient g, the parameter p, the number t of the update from
1 on, and a dict `past` to remember by. It returns what p loses at learning rate 1.
"""

import math

import numpy as np


def sgd(c, g, p, t, past):
    return g


def momentum(c, g, p, t, past):
    """Sutskever et al. 2013, as PyTorch writes it."""
    past["m"] = c.b1 * past.get("m", 0) + g
    return g + c.b1 * past["m"] if c.nesterov else past["m"]


def adagrad(c, g, p, t, past):
    """Duchi et al. 2011, figure 1, with delta = eps."""
    past["sum"] = past.get("sum", 0) + g**2
    return g / (np.sqrt(past["sum"]) + c.eps)


def rmsprop(c, g, p, t, past):
    """Tieleman and Hinton 2012, with eps where PyTorch has it."""
    past["v"] = c.b2 * past.get("v", 0) + (1 - c.b2) * g**2
    return g / (np.sqrt(past["v"]) + c.eps)


def adam(c, g, p, t, past):
    """Kingma and Ba 2015, algorithm 1."""
    past["m"] = c.b1 * past.get("m", 0) + (1 - c.b1) * g
    past["v"] = c.b2 * past.get("v", 0) + (1 - c.b2) * g**2
    root = np.sqrt(past["v"] / (1 - c.b2**t))
    return past["m"] / (1 - c.b1**t) / (root + c.eps)


def nadam(c, g, p, t, past):
    """Dozat 2016, algorithm 2, with one momentum for all updates."""
    past["m"] = c.b1 * past.get("m", 0) + (1 - c.b1) * g
    past["v"] = c.b2 * past.get("v", 0) + (1 - c.b2) * g**2
    root = np.sqrt(past["v"] / (1 - c.b2**t))
    m = c.b1 * past["m"] / (1 - c.b1 ** (t + 1)) + (1 - c.b1) * g / (1 - c.b1**t)
    return m / (root + c.eps)


def lamb(c, g, p, t, past):
    """You et al. 2020, algorithm 2; called with the decay in force for this parameter."""
    step = adam(c, g, p, t, past) + c.weight_decay * p
    return step * np.linalg.norm(p) / np.linalg.norm(step)


def lion(c, g, p, t, past):
    """Chen et al. 2023, algorithm 2."""
    m = past.get("m", 0)
    past["m"] = c.b2 * m + (1 - c.b2) * g
    return np.sign(c.b1 * m + (1 - c.b1) * g)


def adafactor(c, g, p, t, past):
    """Shazeer and Stern 2018, algorithms 4 and 5, with the values of algorithm 6."""
    decay, squares = 1 - t**-0.8, g**2 + 1e-30
    if g.ndim == 2:
        past["r"] = decay * past.get("r", 0) + (1 - decay) * squares.sum(1)
        past["c"] = decay * past.get("c", 0) + (1 - decay) * squares.sum(0)
        v = np.outer(past["r"], past["c"]) / past["r"].sum()
    else:
        v = past["v"] = decay * past.get("v", 0) + (1 - decay) * squares
    u = g / np.sqrt(v)
    u /= max(1, np.sqrt(np.mean(u**2)))
    return max(1e-3, np.sqrt(np.mean(p**2))) * u


def newton_schulz(x, eps):
    """Jordan et al. 2024: five quintic steps from a matrix of norm 1."""
    x = x / (np.linalg.norm(x) + eps)
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T, eps).T
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def muon(c, g, p, t, past):
    """Jordan et al. 2024, with Dozat's momentum and the size of Liu et al. 2025, (4)."""
    past["m"] = 0.95 * past.get("m", 0) + 0.05 * g
    m = 0.95 * past["m"] / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
    return 0.2 * math.sqrt(max(g.shape)) * newton_schulz(m, c.eps)


ORACLES = {  # the rule of the hidden matrix, and that of the rest
    "sgd": (sgd, sgd), "momentum": (momentum, momentum), "adagrad": (adagrad, adagrad),
    "rmsprop": (rmsprop, rmsprop), "adam": (adam, adam), "adamw": (adam, adam),
    "lamb": (lamb, lamb), "lion": (lion, lion), "adafactor": (adafactor, adafactor),
    "muon": (muon, nadam),
}  # fmt: skip
