"""The flags that choose how tokens are decoded: sampling, or a beam search."""

from absl import flags

from lm.beam import Beam
from lm.decoding import Sampling

flags.disclaim_key_flags()  # --help then lists them as the command's own flags


SAMPLING = ("temperature", "top_k", "top_p")  # flags that a beam search does not read
BEAM = ("length_penalty",)  # flags that sampling does not read
MOST_BEAMS = 1024


def define_flags() -> None:
    """Define the flags that `chosen_method` reads."""
    flags.DEFINE_float(
        "temperature", 0.8, "Temperature of sampling; 0 takes the likeliest token."
    )
    flags.DEFINE_integer("top_k", 0, "Sample among the k likeliest tokens; 0: among all.")
    flags.DEFINE_float(
        "top_p", 1.0, "Sample among the likeliest tokens of this total probability."
    )
    flags.DEFINE_integer(
        "beam",
        0,
        "Beams of a beam search; 0: sample instead.",
        lower_bound=0,
        upper_bound=MOST_BEAMS,
    )
    flags.DEFINE_float(
        "length_penalty",
        0.6,
        "Length penalty of the beam search; larger favours longer texts.",
    )


def chosen_method() -> Sampling | Beam:
    """Return what the flags ask for; ValueError if it could not work."""
    given = flags.FLAGS
    unread, advice = (SAMPLING, "a beam search does not read it; leave it out")
    if not given.beam:
        unread, advice = (BEAM, "only a beam search reads it; give --beam too")
    for name in unread:
        if given[name].present:
            raise ValueError(f"--{name} is {given[name].value}, but {advice}")
    if given.beam:
        method = Beam(given.beam, given.length_penalty)
    else:
        method = Sampling(given.temperature, given.top_k, given.top_p)
    method.validate()
    return method
