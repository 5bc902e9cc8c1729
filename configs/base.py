"""The typed config of one experiment; config files return an instance of it."""

from dataclasses import dataclass, field

from configs import fields
from lm.data.config import DataConfig
from lm.models.hmm import HmmConfig
from lm.models.ngram.model import NgramConfig
from lm.models.recurrent import RecurrentConfig
from lm.models.seq2seq.task import Seq2SeqConfig
from lm.models.setting import Family
from lm.models.transformer.config import TransformerConfig
from lm.optim import OptimConfig
from lm.precision import PrecisionConfig
from parallel.strategies import ParallelConfig

FAMILIES = {  # the name in a run's config.json -> the type of Experiment.model
    "transformer": TransformerConfig,
    "recurrent": RecurrentConfig,
    "hmm": HmmConfig,
    "ngram": NgramConfig,
    "seq2seq": Seq2SeqConfig,
}


EVERY = {"at_least": 0, "decides": False}
FREE = {"decides": False}


@dataclass
class Experiment:
    steps: int = field(default=400, metadata={"at_least": 1})  # optimizer updates
    # of the initial parameters, the data order and dropout
    seed: int = field(default=0, metadata={"at_least": 0, "below": 2**32})
    eval_every: int = field(default=100, metadata=EVERY)  # steps; 0: at the end only
    # batches of each evaluation on the way; 0: all rows, as the last one takes
    eval_batches: int = field(default=8, metadata=EVERY)
    save_every: int = field(default=100, metadata=EVERY)  # steps; 0: at the end only
    # latest checkpoints kept, besides the best
    keep: int = field(default=2, metadata={"at_least": 1, "decides": False})
    # a non-finite loss or gradient: skip the step, or stop
    on_nonfinite: str = field(
        default="skip", metadata={"choices": ("skip", "stop"), "decides": False}
    )
    # this many skipped steps in a row end the run
    max_skipped: int = field(
        default=100,
        metadata={"at_least": 1, "only": {"on_nonfinite": ("skip",)}, "decides": False},
    )
    # a loss this far above its recent mean is a spike
    spike_sigmas: float = field(default=6.0, metadata=EVERY)
    # log norms of gradients and activations by layer
    trace_norms: bool = field(default=False, metadata=FREE)
    prompt: str = field(default="def ", metadata=FREE)  # of the sample at the end
    data: DataConfig = field(default_factory=DataConfig)
    model: Family = field(default_factory=TransformerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def validate(self) -> None:
        """Check every field by itself, then what needs more than one; ValueError."""
        if type(self.model) not in FAMILIES.values():
            names = ", ".join(cls.__name__ for cls in FAMILIES.values())
            raise ValueError(
                f"config.model is a {type(self.model).__name__}; expected one of {names}"
            )
        fields.check(self)
        self.data.validate()
        self.optim.validate(self.steps)
