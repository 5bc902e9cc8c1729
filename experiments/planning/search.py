"""Which candidates a plan has: of which strategies, and those of a config's own degrees."""

from configs.base import Experiment
from experiments.planning.advice import nothing_fits
from lm.models.transformer.config import SAVEABLE
from parallel.config import Having
from parallel.cost.machine import Hardware
from parallel.cost.plan import Candidate, Model, parts, plan
from parallel.strategies import STRATEGIES


def strategies_of(
    only: list[str] | None, config: Experiment, keep: bool = False
) -> list[str]:
    """Return the strategies to try; ValueError for unknown names.

    Without `only`, those that are exact, that compile ahead, and whose optimizer is the
    usual one: what the others gain is not the same loss, or not time.
    """
    if keep:
        return [config.parallel.strategy]
    if only is None:
        whole = config.optim.name == "muon"
        return [n for n in Having(exact=True, ahead=True) if whole or n != "zero1_whole"]
    for name in only:
        if name not in STRATEGIES:
            raise ValueError(
                f"--only={name}: there is no such strategy; choose among "
                f"{', '.join(STRATEGIES)}"
            )
    return only


def planned(
    model: Model,
    hardware: Hardware,
    config: Experiment,
    names: list[str],
    accumulation: int | None = None,
) -> list[Candidate]:
    """Return the candidates; ValueError if the batch cannot be split over the devices."""
    found = plan(model, hardware, config.parallel, names, accumulation)
    if found:
        return found
    raise ValueError(
        f"no strategy of {', '.join(names)} can split data.batch_size {model.rows} rows "
        f"and {model.num_layers} layers over the {hardware.num_devices} devices of "
        f"{hardware.name}; give a batch size that {hardware.num_devices} divides, or other "
        "devices"
    )


def kept_degrees(
    found: list[Candidate], config: Experiment, hardware: Hardware
) -> list[Candidate]:
    """Return the candidates of the config's own degrees, the largest microbatch first.

    Among equal microbatches, the one with the least rematerialisation. ValueError if none
    fits, or if the degrees are not those of the hardware.
    """
    wanted = {
        axis: getattr(config.parallel, axis)
        for axis in found[0].degrees
        if getattr(config.parallel, axis) != -1
    }
    own = [one for one in found if wanted.items() <= one.degrees.items()]
    if not own:
        named = ", ".join(f"parallel.{axis} {n}" for axis, n in wanted.items())
        raise ValueError(
            f"--fit keeps the degrees of the config, and {named} do not multiply to the "
            f"{hardware.num_devices} devices of {hardware.name}; change them, or leave out "
            "--fit"
        )
    policies = list(SAVEABLE)

    def largest(one: Candidate) -> tuple[int, int]:
        return one.accumulation * parts(one.degrees), policies.index(one.remat)

    fitting = sorted((one for one in own if one.fits), key=largest)
    if not fitting:
        raise ValueError(nothing_fits(own, hardware))
    return fitting + [one for one in own if not one.fits]
