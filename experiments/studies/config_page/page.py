"""The tables of docs/config.md, made from the fields of the configs."""

import typing

from configs import fields
from configs.base import FAMILIES, Experiment
from experiments.sweeps.tables import markdown
from lm.data.sources.config import SourceConfig

COLUMNS = ("field", "default", "values", "only with", "may change", "what it is")


def page() -> str:
    """Return the part of docs/config.md between its markers: a section for each config."""
    usual = Experiment()
    sections = [section("Experiment", usual, "", fields.deciding(usual))]
    for name in ("data", "optim", "precision", "compress", "robust", "parallel"):
        config = getattr(usual, name)
        sections.append(section(name, config, f"{name}.", fields.deciding(usual)))
    part, prefix = SourceConfig(), "data.sources[i]."
    decides = fields.deciding(part, prefix)
    sections.insert(2, section("data.sources[i]: SourceConfig", part, prefix, decides))
    for name, cls in FAMILIES.items():
        whole = Experiment(model=cls())
        decides = fields.deciding(whole)
        sections.append(section(f"model: {name}", whole.model, "model.", decides))
    return "\n".join(sections)


def section(title: str, config, prefix: str, decides: set[str]) -> str:
    """Return a table of the fields of a config and of the configs inside it.

    The configs inside the whole Experiment are left out: they have their own sections.
    """
    return f"## {title}\n\n{markdown(COLUMNS, rows(config, prefix, decides))}\n"


def rows(config, prefix: str, decides: set[str]) -> list[list[str]]:
    told = fields.comments(type(config))
    found = []
    for field in fields.walk(config, prefix):
        inside = field.name.removeprefix(prefix)
        if "." in inside:
            continue
        if field.is_config:
            if prefix:
                found += rows(field.value, field.name + ".", decides)
            continue
        found.append(
            [
                f"`{field.name}`",
                f"`{field.default!r}`".replace("'", '"'),
                values(field),
                only(field),
                "" if field.name in decides or field.is_tuple else "yes",
                told[inside],
            ]
        )
    return found


def values(field: fields.Field) -> str:
    """Say what a field may be set to."""
    if choices := field.metadata.get("choices"):
        return " ".join(f"`{choice}`" for choice in choices)
    bounds = [
        f"{words} {field.metadata[key]}"
        for key, (words, _) in fields.BOUNDS.items()
        if key in field.metadata
    ]
    if parts := [each for each in typing.get_args(field.spec.type) if each is not ...]:
        names = " and ".join(each.__name__ for each in parts)
        return f"{field.spec.type.__name__} of {names}, in the file"
    return " and ".join(bounds) or f"any {field.spec.type.__name__}"


def only(field: fields.Field) -> str:
    return "; ".join(
        f"`{name}` {' '.join(f'`{value}`' for value in allowed)}"
        for name, allowed in field.only.items()
    )
