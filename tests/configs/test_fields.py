"""The walker of configs: what the metadata of a field says, holds in every family."""

import copy
import dataclasses
import math
from collections.abc import Collection

import pytest

from configs import fields
from configs.base import FAMILIES, Experiment
from experiments.studies.config_page.page import page
from experiments.sweeps.pages import tables
from lm.models.setting import Setting
from tests.experiments.runs import ROOT

WHOLE = [Experiment(model=cls()) for cls in FAMILIES.values()]
SETTING = Setting(vocab_size=300, seq_len=8)


def every_field():
    """Yield (config, field) of all families, each field once."""
    seen = set()
    for config in WHOLE:
        for field in fields.walk(config):
            key = field.name, type(config.model) if "model." in field.name else None
            if field.is_leaf and key not in seen:
                seen.add(key)
                yield config, field


def changed(config: Experiment, name: str, value, **more) -> Experiment:
    """Return a copy with a field set, and what lets the field have an effect."""
    config = copy.deepcopy(config)
    known = {field.name: field for field in fields.walk(config)}
    wanted = {}
    for parent in fields.walk(config):
        if name == parent.name or fields.is_in(name, parent.name):
            wanted |= {n: next(iter(v)) for n, v in parent.only.items()}
    for other, its_value in (wanted | {name: value} | more).items():
        assert other in known
        fields.override(config, {other: its_value})
    return config


def test_defaults_of_all_families_pass():
    for config in WHOLE:
        fields.check(config)


def test_metadata_says_what_the_walker_knows():
    """A misspelt key, or the name of a field that is not there, would check nothing."""
    names = {field.name for config in WHOLE for field in fields.walk(config)}
    checked = 0
    for config in WHOLE:
        for field in fields.walk(config):
            assert set(field.metadata) <= fields.KEYS
            for name, values in field.only.items():
                assert name in names and values and isinstance(values, Collection)
                checked += 1
    assert checked > 30


def test_numbers_outside_their_bounds_are_refused():
    count = 0
    for config, field in every_field():
        step = 1 if field.spec.type is int else 1e-6
        outside = {
            "at_least": lambda b: b - step, "above": lambda b: b,  # noqa: B023
            "at_most": lambda b: b + step, "below": lambda b: b,  # noqa: B023
        }  # fmt: skip
        for key, bound in field.metadata.items():
            if key not in fields.BOUNDS:
                continue
            value = field.spec.type(outside[key](bound))
            with pytest.raises(ValueError) as error:
                fields.check(changed(config, field.name, value))
            assert str(error.value).startswith(f"{field.name} is {value}; it must be")
            assert f"{bound}" in str(error.value)
            count += 1
    assert count > 50


def test_no_number_is_infinite_or_none():
    floats = [(c, f) for c, f in every_field() if f.spec.type is float]
    assert len(floats) > 20
    for config, field in floats:
        for value in (math.nan, math.inf, -math.inf):
            with pytest.raises(ValueError, match=f"{field.name} is {value}; it must be"):
                fields.check(changed(config, field.name, value))


def test_choices_are_named():
    chosen = [(c, f) for c, f in every_field() if "choices" in f.metadata]
    assert len(chosen) > 15
    for config, field in chosen:
        with pytest.raises(ValueError) as error:
            fields.check(changed(config, field.name, "nonsense"))
        said = str(error.value)
        assert field.name in said and "'nonsense'" in said
        assert all(str(choice) in said for choice in field.metadata["choices"])


def test_wrong_types_are_refused():
    for config, field in every_field():
        wrong = 1 if field.spec.type is str else "one"
        with pytest.raises(
            ValueError, match=f"{field.name} is {wrong!r}; expected a value"
        ):
            fields.check(changed(config, field.name, wrong))
    for name, value in [("steps", 2.0), ("steps", True), ("data", None), ("optim", {})]:
        with pytest.raises(ValueError, match=f"{name} is .*; expected a value of type"):
            fields.check(dataclasses.replace(Experiment(), **{name: value}))


def another(field: fields.Field):
    """Return a value within the bounds that is not the default."""
    if "choices" in field.metadata:
        return next(c for c in field.metadata["choices"] if c != field.default)
    if field.spec.type is bool:
        return not field.default
    if field.spec.type is str:
        return field.default + "x"
    if field.spec.type == dict[str, float]:
        return {"x": 1.0}
    if field.spec.type is tuple:
        return (*field.default, (1, 2))
    bounds = field.metadata
    low = bounds.get("at_least", bounds.get("above", 0))
    high = bounds.get("at_most", bounds.get("below", low + 2 * abs(field.default) + 4))
    middle = (low + high) / 2 + (high - low) / 8
    return field.spec.type(middle)


def test_a_field_without_effect_is_refused_and_one_with_effect_is_not():
    refused = 0
    for config, field in every_field():
        value = another(field)
        fields.check(changed(config, field.name, value))
        alone = copy.deepcopy(config)
        fields.override(alone, {field.name: value})
        only = field.only
        now = {f.name: f.value for f in fields.walk(alone)}
        if any(now[name] not in values for name, values in only.items()):
            with pytest.raises(ValueError, match="has no effect") as error:
                fields.check(alone)
            assert str(error.value).startswith(f"{field.name} is {value!r}, but")
            refused += 1
    assert refused > 25


def test_a_whole_part_without_effect_is_refused():
    for name in ("parallel.exchange.delay", "parallel.local.every"):
        config = changed(Experiment(), name, 3, **{"parallel.strategy": "fsdp"})
        with pytest.raises(ValueError, match=f"{name} is 3, but .* 'fsdp'"):
            fields.check(config)


def test_names_overrides_and_reading_back():
    for config in WHOLE:
        flat = fields.flatten(config)
        assert len(flat) > 50 and flat["optim.learning_rate"] == 1e-3
        rebuilt = fields.from_dict(Experiment, dataclasses.asdict(config) | {"model": None})
        rebuilt.model = fields.from_dict(
            type(config.model), dataclasses.asdict(config.model)
        )
        assert rebuilt == config
    config = Experiment()
    fields.override(config, {"parallel.local.every": 7})
    assert config.parallel.local.every == 7
    with pytest.raises(ValueError, match="'optim.learnin_rate'.*'optim.learning_rate'"):
        fields.override(config, {"optim.learnin_rate": 1.0})
    with pytest.raises(ValueError, match="has no field old"):
        fields.from_dict(Experiment, {"old": 1})


def test_the_nearest_field_is_one_that_could_be_meant():
    known = fields.flatten(Experiment())
    for given, meant in {
        "optim.learnin_rate": "optim.learning_rate",
        "optimm.learning_rate": "optim.learning_rate",
        "learning_rate": "optim.learning_rate",
        "width": "model.width",
        "optim.batch_size": "data.batch_size",  # the right name in the wrong group
        "step": "steps",
    }.items():
        assert fields.nearest(given, known) == f"; the nearest is {meant!r}", given
    # Nothing in the group is near: not optim.b2, but all that the group has.
    told = fields.nearest("optim.lr", known)
    assert told.startswith("; optim has name, ") and "learning_rate" in told
    assert fields.nearest("zzz", known) == "; docs/config.md lists all fields"


def test_what_decides_the_numbers():
    deciding = fields.deciding(Experiment())
    assert {"steps", "optim.b1", "parallel.local.every", "data.source"} <= deciding
    assert {"parallel.exchange.codec", "parallel.exchange.delay"} <= deciding
    free = fields.flatten(Experiment()).keys() - deciding
    assert {"data.cache", "model.attention", "parallel.data", "parallel.strategy"} <= free


def test_comments_are_those_of_the_source():
    @dataclasses.dataclass
    class Config:
        # above it,
        # in two lines
        a: int = dataclasses.field(
            default=1,
            metadata={"at_least": 0},
        )
        b: str = "x: y"  # at its end
        c: int = 3

    assert fields.comments(Config) == {
        "a": "above it, in two lines", "b": "at its end", "c": "",
    }  # fmt: skip

    @dataclasses.dataclass
    class Longer(Config):
        # another
        c: int = 4
        d: int = 5  # its own

    inherited = {"a": "above it, in two lines", "b": "at its end"}
    assert fields.comments(Longer) == inherited | {"c": "another", "d": "its own"}


@pytest.mark.parametrize(
    "family, name, value, words",
    [
        ("transformer", "num_heads", 3, "num_heads 3 does not divide model.width 256"),
        ("transformer", "num_kv_heads", 3, "num_kv_heads 3 does not divide .*num_heads 4"),
        ("transformer", "loss_chunk", 3, "loss_chunk 3 does not divide data.seq_len 8"),
        ("recurrent", "truncate", 3, "truncate 3 does not divide data.seq_len 8"),
        ("seq2seq", "num_heads", 3, "num_heads 3 does not divide model.width 256"),
    ],
)
def test_what_needs_two_fields_is_checked_by_the_family(family, name, value, words):
    config = dataclasses.replace(FAMILIES[family](), **{name: value})
    with pytest.raises(ValueError, match=words):
        config.validate(SETTING)


def test_a_warm_up_longer_than_the_run_is_refused():
    config = changed(Experiment(steps=5), "optim.warmup_steps", 6)
    with pytest.raises(ValueError, match="warmup_steps 6 is more than the 5 steps"):
        config.validate()


def test_the_page_of_fields_is_that_of_the_code():
    assert tables(ROOT / "docs" / "config.md") == {"fields": page().strip()}
    assert page().count("`parallel.local.every`") == 1


def test_every_field_says_what_it_is():
    for config in WHOLE:
        parents = [config, *(f.value for f in fields.walk(config) if f.is_config)]
        for parent in parents:
            for name, text in fields.comments(type(parent)).items():
                assert text or dataclasses.is_dataclass(getattr(parent, name)), name
