"""The typed config of one experiment; config files return an instance of it."""

from dataclasses import dataclass, field

from lm.data.config import DataConfig
from lm.models.hmm import HmmConfig
from lm.models.ngram.model import NgramConfig
from lm.models.recurrent import RecurrentConfig
from lm.models.seq2seq.task import Seq2SeqConfig
from lm.models.transformer.config import TransformerConfig
from lm.optim import OptimConfig
from lm.precision import PrecisionConfig
from parallel.strategies import ParallelConfig

ON_NONFINITE = ("skip", "stop")
FAMILIES = {  # the name in a run's config.json -> the type of Experiment.model
    "transformer": TransformerConfig,
    "recurrent": RecurrentConfig,
    "hmm": HmmConfig,
    "ngram": NgramConfig,
    "seq2seq": Seq2SeqConfig,
}
Model = TransformerConfig | RecurrentConfig | Seq2SeqConfig | HmmConfig | NgramConfig


@dataclass
class Experiment:
    steps: int = 400  # optimizer updates
    seed: int = 0  # of the initial parameters, the data order and dropout
    eval_every: int = 100  # steps; 0: at the end only
    eval_batches: int = 8  # of each evaluation on the way; the last takes all rows
    save_every: int = 100  # steps; 0: at the end only
    keep: int = 2  # latest checkpoints kept, besides the best
    on_nonfinite: str = "skip"  # a non-finite loss or gradient: skip the step | stop
    max_skipped: int = 100  # skip: so many skipped steps in a row end the run
    spike_sigmas: float = 6.0  # a loss this far above its recent mean is a spike
    trace_norms: bool = False  # log norms of gradients and activations by layer
    prompt: str = "def "  # of the sample at the end
    data: DataConfig = field(default_factory=DataConfig)
    model: Model = field(default_factory=TransformerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def validate(self) -> None:
        for name in ("eval_every", "eval_batches", "save_every", "spike_sigmas"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must not be negative"
                )
        for name in ("steps", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be >= 1")
        if self.on_nonfinite not in ON_NONFINITE:
            raise ValueError(
                f"on_nonfinite is {self.on_nonfinite!r}; "
                f"choose one of {', '.join(ON_NONFINITE)}"
            )
        if type(self.model) not in FAMILIES.values():
            names = ", ".join(cls.__name__ for cls in FAMILIES.values())
            raise ValueError(
                f"config.model is a {type(self.model).__name__}; expected one of {names}"
            )
        self.data.validate()
        self.model.validate(self.data.seq_len)
        self.optim.validate()
        self.precision.validate()
