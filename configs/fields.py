"""One walker of configs: names, overrides, flattening, reading back, checking, comments.

A config is a dataclass whose fields are numbers, strings, dicts of these, further configs,
or tuples of configs. The name of a field is its path, as in `optim.learning_rate` or
`data.sources[0].weight`. Its metadata, a plain dict, says more than its type. Each
component writes this dict without importing this module:

  at_least, above, at_most, below  bounds of a number; every number must be finite
  choices                          the values that the field may have
  only                             {name of another field: values}: the field has an effect
                                   only if each of these other fields has one of its values;
                                   otherwise the field must keep its default; a name that
                                   begins with a dot is of the same config; in a part of a
                                   tuple, as parallel.phases[0], a name of the config around
                                   it (parallel.strategy) is that of the part
  words                            {word: number}: words that a flag may give instead
  decides                          False: the field does not decide the numbers of a run, so
                                   it may differ when the run continues
"""

import dataclasses
import difflib
import functools
import inspect
import math
import re
import tokenize
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from io import StringIO
from typing import Any, NamedTuple

BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "at_least": ("at least", lambda value, bound: value >= bound),
    "above": ("above", lambda value, bound: value > bound),
    "at_most": ("at most", lambda value, bound: value <= bound),
    "below": ("below", lambda value, bound: value < bound),
}
KEYS = {*BOUNDS, "choices", "only", "words", "decides"}


class Field(NamedTuple):
    name: str  # the path, with dots
    value: Any
    spec: dataclasses.Field

    @property
    def configs(self) -> dict[str, Any]:
        """The configs that it holds, by their names: itself, or those of a tuple."""
        if dataclasses.is_dataclass(self.value):
            return {self.name: self.value}
        if not self.is_tuple or not isinstance(self.value, tuple):
            return {}
        return {f"{self.name}[{i}]": each for i, each in enumerate(self.value)}

    @property
    def is_config(self) -> bool:
        return dataclasses.is_dataclass(self.value)

    @property
    def is_tuple(self) -> bool:
        """Whether it holds a tuple of configs."""
        return is_tuple_of_configs(self.spec.type)

    @property
    def is_leaf(self) -> bool:
        return not self.is_config and not self.is_tuple

    @property
    def default(self) -> Any:
        if self.spec.default_factory is not dataclasses.MISSING:
            return self.spec.default_factory()
        return self.spec.default

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.spec.metadata

    @property
    def only(self) -> dict[str, Collection[Any]]:
        """The metadata `only`, with the whole name of each field."""
        only = self.metadata.get("only", {})
        return {self.whole_name(name): values for name, values in only.items()}

    def whole_name(self, name: str) -> str:
        if name.startswith("."):
            return self.name.rpartition(".")[0] + name
        element = re.match(r"(.+)\.[^.]+\[\d+\]\.", self.name)
        if element and is_in(name, element[1]):
            return element[0] + name.removeprefix(element[1] + ".")
        return name


@functools.cache
def is_tuple_of_configs(kind: Any) -> bool:
    inside = typing.get_args(kind)
    return typing.get_origin(kind) is tuple and dataclasses.is_dataclass(inside[0])


def walk(config: Any, prefix: str = "") -> Iterator[Field]:
    """Yield every field, a config before the fields inside it."""
    for spec in dataclasses.fields(config):
        field = Field(prefix + spec.name, getattr(config, spec.name), spec)
        yield field
        for name, inside in field.configs.items():
            if dataclasses.is_dataclass(inside):
                yield from walk(inside, name + ".")


def flatten(config: Any) -> dict[str, Any]:
    """Map the name of every field that holds no configs to its value."""
    return {field.name: field.value for field in walk(config) if field.is_leaf}


def override(config: Any, overrides: Mapping[str, Any]) -> Any:
    """Set fields in place; ValueError, with the nearest name, for an unknown name."""
    for name, value in overrides.items():
        set_field(config, name, value)
    return config


def set_field(config: Any, name: str, value: Any) -> None:
    """Set one field in place; ValueError for an unknown name."""
    found = list(walk(config))
    known = {field.name for field in found if field.is_leaf}
    if name not in known:
        raise ValueError(f"config has no field {name!r}{nearest(name, flatten(config))}")
    group, _, last = name.rpartition(".")
    inside = {n: each for field in found for n, each in field.configs.items()}
    setattr(inside[group] if group else config, last, value)


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
    return cls(**{name: rebuilt(specs[name].type, value) for name, value in values.items()})


def rebuilt(expected: Any, value: Any) -> Any:
    """Return the value of a field of a type, from what a JSON file holds."""
    if dataclasses.is_dataclass(expected) and isinstance(value, dict):
        return from_dict(expected, value)
    if typing.get_origin(expected) is tuple and isinstance(value, list | tuple):
        return tuple(rebuilt(typing.get_args(expected)[0], each) for each in value)
    return as_tuple(value) if expected is tuple else value


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
        if field.is_leaf:
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
    if not is_of(field.value, expected):
        parts = ", ".join(x.__name__ for x in typing.get_args(expected) if x is not ...)
        kind = getattr(expected, "__name__", expected)
        raise ValueError(
            f"{field.name} is {field.value!r}; expected a value of type {kind}"
            + (f" of {parts}" if parts else "")
        )


def is_of(value: Any, expected: Any) -> bool:
    """Tell whether a value is of a type, which may be tuple[X, ...] or dict[X, Y]."""
    origin, parts = typing.get_origin(expected), typing.get_args(expected)
    if origin is tuple:
        return isinstance(value, tuple) and all(is_of(each, parts[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            is_of(key, parts[0]) and is_of(each, parts[1]) for key, each in value.items()
        )
    # An int is accepted as a float. A bool is an int in Python, but not here.
    if isinstance(value, bool) and expected is not bool:
        return False
    return isinstance(value, (int, float) if expected is float else expected)


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
    for name, values in field.only.items():
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


def deciding(config: Any, prefix: str = "") -> set[str]:
    """Return the names of the fields that decide the numbers of a run."""
    free: list[str] = []
    names = set()
    for field in walk(config, prefix):
        if not field.metadata.get("decides", True):
            free.append(field.name)
        if field.is_leaf and not any(is_in(field.name, name) for name in free):
            names.add(field.name)
    return names


def is_in(name: str, config: str) -> bool:
    """Tell whether a name is that of a config or of a field inside it."""
    return name == config or name.startswith(config + ".")


def comments(cls: type) -> dict[str, str]:
    """Map each field of a dataclass to its comment, on its line or on the lines before."""
    found: dict[str, str] = {}
    for each in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        found |= own_comments(each)
    return found


def own_comments(cls: type) -> dict[str, str]:
    """Return those of the fields that stand in the class itself."""
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
