"""How next tokens are chosen: sampling or a beam search, and the flags of that choice."""

from absl import flags

from lm.beam import Beam
from lm.decoding import Sampling

flags.disclaim_key_flags()  # they are shown as those of the command that asks for them


SAMPLING = ("temperature", "top_k", "top_p")  # flags that a beam search does not read
BEAM = ("length_penalty",)  # flags that sampling does not read
MOST_BEAMS = 1024


def define_flags() -> None:
    """Define the flags that `chosen_method` reads."""
    flags.DEFINE_float("temperature", 0.8, "0 is greedy.")
    flags.DEFINE_integer("top_k", 0, "Keep the k likeliest tokens; 0: all.")
    flags.DEFINE_float("top_p", 1.0, "Keep the likeliest tokens of this share.")
    flags.DEFINE_integer(
        "beam",
        0,
        "Search with so many beams; 0: sample.",
        lower_bound=0,
        upper_bound=MOST_BEAMS,
    )
    flags.DEFINE_float(
        "length_penalty", 0.6, "Of the beam search: 0 is none, more favours longer texts."
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
