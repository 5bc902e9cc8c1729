"""The typed config of one experiment; each config file returns an instance of it."""

from dataclasses import dataclass, field

from configs import fields
from lm.compress.config import CompressConfig
from lm.data.config import DataConfig
from lm.models.hmm import HmmConfig
from lm.models.ngram.model import NgramConfig
from lm.models.recurrent import RecurrentConfig
from lm.models.seq2seq.task import Seq2SeqConfig
from lm.models.setting import Family
from lm.models.transformer.config import TransformerConfig
from lm.optim import OptimConfig
from lm.precision import PrecisionConfig
from lm.robust import RobustConfig
from parallel.config import ParallelConfig, where

FAMILIES = {  # the name in a run's config.json -> the type of Experiment.model
    "transformer": TransformerConfig,
    "recurrent": RecurrentConfig,
    "hmm": HmmConfig,
    "ngram": NgramConfig,
    "seq2seq": Seq2SeqConfig,
}


def embeddings_file(config: "Experiment") -> str:
    """Return the file of word vectors; "" if there is none, as in families without them."""
    return getattr(config.model, "embeddings", "")


EVERY = {"at_least": 0, "decides": False}
FREE = {"decides": False}


@dataclass
class Experiment:
    # optimizer updates in the whole run
    steps: int = field(default=400, metadata={"at_least": 1})
    # random seed of the initial parameters, the order of the data and dropout
    seed: int = field(default=0, metadata={"at_least": 0, "below": 2**32})
    # steps between evaluations; 0: only at the end
    eval_every: int = field(default=100, metadata=EVERY)
    # batches in an evaluation during the run; 0: all rows, as in the evaluation at the end
    eval_batches: int = field(default=8, metadata=EVERY)
    # steps between checkpoints; 0: only at the end; -1: as many as lose the least, by the
    # seconds that a save takes and the faults that the run has met (Daly 2006)
    save_every: int = field(default=100, metadata={"at_least": -1, "decides": False})
    # number of latest checkpoints that are kept; the best one is kept too
    keep: int = field(default=2, metadata={"at_least": 1, "decides": False})
    # steps between comparisons of the replicas' copies of the state, by a sum of bits; the
    # run stops where they differ; each state that is saved is compared, too; 0: none is
    check_every: int = field(default=0, metadata=EVERY)
    # seconds that a process waits for others in one step, save or batch of an evaluation,
    # before it says for whom it waits and ends; 0: for ever
    deadline: float = field(default=600.0, metadata=EVERY)
    # on a NaN or an infinity in the loss or a gradient: skip the update, or stop the run
    on_nonfinite: str = field(
        default="skip", metadata={"choices": ("skip", "stop"), "decides": False}
    )
    # number of skipped steps in a row that ends the run
    max_skipped: int = field(
        default=100,
        metadata={"at_least": 1, "only": {"on_nonfinite": ("skip",)}, "decides": False},
    )
    # a loss this many standard deviations above the recent mean is a spike; 0: count none
    spike_sigmas: float = field(default=6.0, metadata=EVERY)
    # log the norms of gradients and activations of each layer
    trace_norms: bool = field(default=False, metadata=FREE)
    # text that the sample at the end of the run continues; with pairs, the source text
    prompt: str = field(default="def ", metadata=FREE)
    data: DataConfig = field(default_factory=DataConfig)
    model: Family = field(default_factory=TransformerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    compress: CompressConfig = field(default_factory=CompressConfig)
    # rows are judged by the loss of all replicas together
    robust: RobustConfig = field(
        default_factory=RobustConfig, metadata={"only": where(exact=True)}
    )
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def validate(self) -> None:
        """Raise ValueError for a wrong field, or for fields that do not fit together."""
        if type(self.model) not in FAMILIES.values():
            names = ", ".join(cls.__name__ for cls in FAMILIES.values())
            raise ValueError(
                f"config.model is a {type(self.model).__name__}; expected one of {names}"
            )
        fields.check(self)
        self.parallel.validate_phases(self.steps)
        self.data.validate()
        if self.data.growth and self.data.growth[-1][0] >= self.steps:
            raise ValueError(
                f"data.growth begins a phase after {self.data.growth[-1][0]} steps, but "
                f"the run has {self.steps}; leave that phase out, or give more steps"
            )
        self.optim.validate(self.parallel.own_steps(self.steps))
