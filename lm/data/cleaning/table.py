"""Every stage of cleaning, in a sensible order: a stage is its own file and a row here."""

from lm.data.cleaning import anomaly, exact_dedup, near_dedup
from lm.data.cleaning.anomaly import AnomalyConfig
from lm.data.cleaning.exact_dedup import ExactDedupConfig
from lm.data.cleaning.fix import FixConfig, fix
from lm.data.cleaning.near_dedup import NearDedupConfig
from lm.data.cleaning.normalise import NormaliseConfig, normalise
from lm.data.cleaning.stage import Stage

STAGES = {
    "fix": Stage(FixConfig, fix),
    # The Unicode form of mojibake is no mojibake that could be restored.
    "normalise": Stage(NormaliseConfig, normalise, follows=("fix",)),
    "exact_dedup": Stage(
        ExactDedupConfig, exact_dedup.apply, exact_dedup.sketch, exact_dedup.decide
    ),
    "near_dedup": Stage(
        NearDedupConfig,
        near_dedup.apply,
        near_dedup.sketch,
        near_dedup.decide,
        follows=("exact_dedup",),  # which would find nothing after it
    ),
    "anomaly": Stage(
        AnomalyConfig,
        anomaly.apply,
        anomaly.sketch,
        anomaly.decide,
        # Else a loss would fall because what is hard to predict is left out.
        held_out=False,
        # What can be repaired is no anomaly; and they would move the masked spans.
        follows=("fix", "normalise"),
    ),
}


def chosen_stages(stages: str) -> list[str]:
    """Return the names in a list of stages; ValueError for a list that cannot work."""
    names = [name.strip() for name in stages.split(",") if name.strip()]
    for name in names:
        if name not in STAGES:
            raise ValueError(
                f"data.stages names {name!r}, which is no stage; choose from "
                f"{', '.join(STAGES)}"
            )
        if names.count(name) > 1:
            raise ValueError(f"data.stages names {name!r} {names.count(name)} times")
    for place, name in enumerate(names):
        if late := set(STAGES[name].follows) & set(names[place:]):
            raise ValueError(
                f"data.stages is {stages!r}; {name} must come after {', '.join(late)}, "
                f"as in {','.join(sorted(names, key=list(STAGES).index))}"
            )
    return names
