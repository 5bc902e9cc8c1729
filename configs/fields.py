"""One walker of configs: names, overrides, flattening, reading back, checking, comments.

A config is a dataclass whose fields are numbers, strings or further configs. The name of a
field is its path, as in `optim.learning_rate`. Its metadata, a plain dict, says more than
its type. Each component writes this dict without importing this module:

  at_least, above, at_most, below  bounds of a number; every number must be finite
  choices                          the values that the field may have
  only                             {name of another field: values}: the field has an effect
                                   only if each of these other fields has one of its values;
                                   otherwise the field must keep its default
  decides                          False: the field does not decide the numbers of a run, so
                                   it may differ when the run continues
"""

import dataclasses
import difflib
import inspect
import math
import tokenize
from collections.abc import Callable, Collection, Iterator, Mapping
from io import StringIO
from typing import Any, NamedTuple

BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "at_least": ("at least", lambda value, bound: value >= bound),
    "above": ("above", lambda value, bound: value > bound),
    "at_most": ("at most", lambda value, bound: value <= bound),
    "below": ("below", lambda value, bound: value < bound),
}
KEYS = {*BOUNDS, "choices", "only", "decides"}


class Field(NamedTuple):
    name: str  # the path, with dots
    value: Any
    spec: dataclasses.Field

    @property
    def is_config(self) -> bool:
        return dataclasses.is_dataclass(self.value)

    @property
    def default(self) -> Any:
        if self.spec.default_factory is not dataclasses.MISSING:
            return self.spec.default_factory()
        return self.spec.default

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.spec.metadata


def walk(config: Any, prefix: str = "") -> Iterator[Field]:
    """Yield every field, a config before the fields inside it."""
    for spec in dataclasses.fields(config):
        field = Field(prefix + spec.name, getattr(config, spec.name), spec)
        yield field
        if field.is_config:
            yield from walk(field.value, field.name + ".")


def flatten(config: Any) -> dict[str, Any]:
    """Map the name of every field that is no config to its value."""
    return {field.name: field.value for field in walk(config) if not field.is_config}


def override(config: Any, overrides: Mapping[str, Any]) -> Any:
    """Set fields in place; ValueError, with the nearest name, for an unknown name."""
    for name, value in overrides.items():
        set_field(config, name, value)
    return config


def set_field(config: Any, name: str, value: Any) -> None:
    """Set one field in place; ValueError for an unknown name."""
    known = flatten(config)
    if name not in known:
        raise ValueError(f"config has no field {name!r}{nearest(name, known)}")
    *path, last = name.split(".")
    for part in path:
        config = getattr(config, part)
    setattr(config, last, value)


def nearest(name: str, known: Collection[str]) -> str:
    """Say which known name is the nearest; without one, list those of its group."""
    group, _, last = name.rpartition(".")
    siblings = {x.rpartition(".")[2]: x for x in known if x.rpartition(".")[0] == group}
    # The group's name must not count: optim.lr is not near optim.b2.
    near = [siblings[x] for x in difflib.get_close_matches(last, siblings, 1)]
    near += [x for x in known if x.endswith(f".{last}")]
    if not near and (not group or not siblings):
        near = difflib.get_close_matches(name, known, 1, 0.5)
    if near:
        return f"; the nearest is {near[0]!r}"
    if group and siblings:
        return f"; {group} has {', '.join(siblings)}"
    return "; docs/config.md lists all fields"


def from_dict(cls: type, values: Mapping[str, Any]) -> Any:
    """Build a config from a dict that dataclasses.asdict made.

    Raises ValueError for a field that the class does not have.
    """
    specs = {spec.name: spec for spec in dataclasses.fields(cls)}
    if unknown := set(values) - set(specs):
        raise ValueError(
            f"{cls.__name__} has no field {', '.join(sorted(unknown))}; it has "
            f"{', '.join(specs)}"
        )
    return cls(
        **{
            name: from_dict(specs[name].type, value)
            if dataclasses.is_dataclass(specs[name].type) and isinstance(value, dict)
            else as_tuple(value)
            if specs[name].type is tuple
            else value
            for name, value in values.items()
        }
    )


def as_tuple(value: Any) -> Any:
    """Turn lists, which JSON has for tuples, into tuples."""
    return tuple(map(as_tuple, value)) if isinstance(value, list) else value


def check(config: Any, prefix: str = "") -> None:
    """Check the type and the metadata of every field; ValueError names the field.

    A config that is part of a larger one can be checked by itself. `prefix` is then its
    name in the larger one, with a dot at the end.
    """
    fields = {field.name: field for field in walk(config, prefix)}
    for field in fields.values():
        if unknown := set(field.metadata) - KEYS:
            raise TypeError(f"the metadata of {field.name} has unknown keys {unknown}")
        check_type(field)
        if not field.is_config:
            check_bounds(field)
            check_choice(field)
    for field in fields.values():
        check_effect(field, fields)


def check_types(config: Any) -> None:
    """Raise ValueError for a field whose value is not of its type."""
    for field in walk(config):
        check_type(field)


def check_type(field: Field) -> None:
    expected = field.spec.type
    # An int is accepted as a float. A bool is an int in Python, but not here.
    fits = (int, float) if expected is float else expected
    is_bool = isinstance(field.value, bool) and expected is not bool
    if is_bool or not isinstance(field.value, fits):
        kind = getattr(expected, "__name__", expected)
        raise ValueError(
            f"{field.name} is {field.value!r}; expected a value of type {kind}"
        )


def check_bounds(field: Field) -> None:
    if not isinstance(field.value, int | float):
        return
    bounds = [(key, field.metadata[key]) for key in BOUNDS if key in field.metadata]
    inside = all(BOUNDS[key][1](field.value, bound) for key, bound in bounds)
    if inside and math.isfinite(field.value):
        return
    wanted = " and ".join(f"{BOUNDS[key][0]} {bound}" for key, bound in bounds)
    raise ValueError(
        f"{field.name} is {field.value}; it must be {wanted or 'a finite number'}"
    )


def check_choice(field: Field) -> None:
    choices = field.metadata.get("choices")
    if choices is not None and field.value not in choices:
        raise ValueError(
            f"{field.name} is {field.value!r}; choose one of {', '.join(map(str, choices))}"
        )


def check_effect(field: Field, fields: Mapping[str, Field]) -> None:
    """Refuse a field that is set where it has no effect."""
    if field.value == field.default:
        return
    for name, values in field.metadata.get("only", {}).items():
        if name in fields and fields[name].value not in values:
            raise ValueError(
                f"{told(field)}, but it has no effect where {name} is "
                f"{fields[name].value!r}; unset it, or let {name} be "
                f"{' or '.join(map(repr, values))}"
            )


def told(field: Field) -> str:
    """Return words for the value of a field; for a config, its first changed field."""
    if not field.is_config:
        return f"{field.name} is {field.value!r}"
    usual = flatten(field.default)
    name, value = next(
        (name, value)
        for name, value in flatten(field.value).items()
        if usual.get(name) != value
    )
    return f"{field.name}.{name} is {value!r}"


def deciding(config: Any) -> set[str]:
    """Return the names of the fields that decide the numbers of a run."""
    free: list[str] = []
    names = set()
    for field in walk(config):
        if not field.metadata.get("decides", True):
            free.append(field.name)
        if not field.is_config and not any(is_in(field.name, name) for name in free):
            names.add(field.name)
    return names


def is_in(name: str, config: str) -> bool:
    """Tell whether a name is that of a config or of a field inside it."""
    return name == config or name.startswith(config + ".")


def comments(cls: type) -> dict[str, str]:
    """Map each field of a dataclass to its comment, on its line or on the lines before."""
    lines = inspect.getsource(cls).splitlines(keepends=True)
    found: dict[str, str] = {}
    above: list[str] = []
    name, depth = "", 0
    for token in tokenize.generate_tokens(StringIO("".join(lines)).readline):
        line = token.line.strip()
        if token.type == tokenize.OP and token.string in "([{":
            depth += 1
        elif token.type == tokenize.OP and token.string in ")]}":
            depth -= 1
        elif token.type == tokenize.COMMENT:
            text = token.string.removeprefix("#").strip()
            if line.startswith("#"):
                above.append(text)
            elif name:
                found[name] = " ".join(filter(None, (found.get(name, ""), text)))
        elif token.type == tokenize.OP and token.string == ":" and not depth:
            candidate = line.partition(":")[0]
            if candidate in {spec.name for spec in dataclasses.fields(cls)}:
                name = candidate
                found[name] = " ".join(above)
        elif token.type == tokenize.NEWLINE:
            above, name = [], ""
    return found
