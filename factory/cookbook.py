"""From a recipe's name or file to a checked ``Order``: recipe, wording and strategies, and what identifies its data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from factory.errors import InputError, nearest
from factory.recipe import Recipe, Section
from factory.wording import load_preset
from strategies.catalogue import catalogue
from strategies.contrast import Strategy
from strategies.preset import Preset
from strategies.score import Scores

# Between the samples of a strategy where nothing is shared: more than a recipe has strategies.
STRIDE = 1000


@dataclass(frozen=True, slots=True)
class Order:
    """A recipe that was checked, with everything that it names."""

    recipe: Recipe
    preset: Preset
    strategies: tuple[Strategy, ...]  # one that draws several samples stands here as often
    scores: Scores | None = None

    def data(self) -> dict[str, Any]:
        """All that decides which data comes out, flat: ``{"variants.strong.model": ...}``."""
        # The strategies as they were built: a default that is written out is no difference, and an order that changes
        # which sample a strategy draws is one.
        strategies: dict[str, Any] = {}
        words = asdict(self.preset)
        common = {key: text for key, text in words.items() if key not in Preset.SECTIONS}
        for strategy in self.strategies:
            own = {f.name: getattr(strategy, f.name) for f in fields(strategy) if f.name != "preset"}
            # Wording that only this strategy uses stands with it, so that it can be added to a run that is there.
            own |= {section: words[section] for section in strategy.wording}
            strategies.setdefault(strategy.name, own | {"samples": self.recipe.strategies[strategy.name].samples})
        return _flat({**_data(self.recipe), "preset": common, "strategies": strategies})

    @property
    def fingerprint(self) -> str:
        """Identity of the data that this order makes; operational fields are not part of it."""
        return hashlib.sha256(json.dumps(self.data(), sort_keys=True).encode()).hexdigest()[:16]


def built_in() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(Path(f.name).stem for f in (files("factory") / "recipes").iterdir() if f.name.endswith(".yaml"))


def read(name: str) -> dict[str, Any]:
    """The YAML of a recipe: the name of a built-in one, or a path."""
    path = Path(name)
    try:
        if name in built_in():
            return parse((files("factory") / "recipes" / f"{name}.yaml").read_bytes(), name)
        if path.suffix in {".yaml", ".yml"} or path.exists():
            return parse(path.read_bytes(), name)
    except OSError as error:
        raise InputError(f"cannot read recipe {name}: {error.strerror}") from None
    raise InputError(f"unknown recipe '{name}'{nearest(name, built_in())} (or the path of a .yaml file)")


def parse(content: bytes, name: str) -> dict[str, Any]:
    """The YAML of a recipe's text; ``name`` is for the messages."""
    try:
        data = yaml.safe_load(content.decode())
    except UnicodeDecodeError:
        raise InputError(f"recipe {name} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise InputError(f"recipe {name} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise InputError(f"recipe {name} is not a mapping of keys to values")
    return data


def order(name: str, overrides: Sequence[str] = ()) -> Order:
    """The checked order of a recipe with ``--set key=value`` overrides.

    Raises:
        InputError: naming the recipe, the key, and the nearest known word.
    """
    return check(changed(read(name), overrides), name)


def changed(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A recipe's content with ``--set key=value`` overrides set in it."""
    for override in overrides:
        _set(data, override)
    return data


def check(data: dict[str, Any], name: str) -> Order:
    """Check a recipe's content; ``name`` is for the messages."""
    if isinstance(data.get("strategies"), dict):  # `--set strategies.refine=null` leaves one out
        data = {**data, "strategies": {key: value for key, value in data["strategies"].items() if value is not None}}
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise InputError(f"recipe {name}: {_message(error)}") from None
    try:
        preset = load_preset(recipe.preset)
        strategies = tuple(
            _strategy(recipe, preset, key, number if recipe.share else i + STRIDE * number)
            for i, (key, settings) in enumerate(recipe.strategies.items())
            for number in range(settings.samples)
        )
        _check_references(recipe, strategies)
        _check_scores(recipe)
    except InputError as error:
        raise InputError(f"recipe {name}: {error}") from None
    used = {section for strategy in strategies for section in strategy.wording}
    return Order(recipe, preset.only(used), strategies, _scores(recipe, preset))


def _scores(recipe: Recipe, preset: Preset) -> Scores | None:
    wanted = recipe.scores
    if wanted is None:
        return None
    told = {name for name, variant in recipe.variants.items() if variant.engine in ("vllm", "scripted")}
    return Scores(
        share=wanted.share,
        margin=frozenset(told if wanted.margin else ()),
        judge=wanted.judge,
        criterion=preset.criterion,
        reward=wanted.reward,
    )


def _strategy(recipe: Recipe, preset: Preset, name: str, sample: int) -> Strategy:
    known = catalogue()
    if name not in known:
        raise InputError(f"strategies: unknown strategy '{name}'{nearest(name, known)}")
    options = recipe.strategies[name].options
    allowed = {f.name for f in fields(known[name])} - {"preset", "sample"}
    for option in options:
        if option not in allowed:
            raise InputError(f"strategies.{name}: unknown key '{option}'{nearest(option, allowed | {'weight'})}")
    for section in known[name].wording:
        if not getattr(preset, section):
            raise InputError(
                f"strategies.{name}: preset {recipe.preset} has no key `{section}`; add it as in "
                "strategies/presets/*.yaml"
            )
    # Without sharing every strategy draws its own sample: content that is equal otherwise gets ids of its own.
    given = {"preset": preset, "sample": sample, **options}
    given = {key: value for key, value in given.items() if key in allowed | {"preset", "sample"}}
    try:
        return TypeAdapter(known[name]).validate_python(given)
    except ValidationError as error:
        raise InputError(f"strategies.{name}{_message(error, prefix='.')}") from None


def _check_references(recipe: Recipe, strategies: Sequence[Strategy]) -> None:
    for strategy in strategies:
        for variant in strategy.variants:
            if variant not in recipe.variants:
                raise InputError(
                    f"strategies.{strategy.name}: unknown variant '{variant}'{nearest(variant, recipe.variants)}"
                )
            if recipe.variants[variant].engine == "reward":
                raise InputError(
                    f"strategies.{strategy.name}: variant '{variant}' is a reward model and writes no text"
                )
        if recipe.strategies[strategy.name].samples > 1 and recipe.sampling.temperature == 0:
            raise InputError(f"strategies.{strategy.name}.samples: at temperature 0 all samples are the same")
    if recipe.train is not None:
        _check_student(recipe, strategies)
        if recipe.train.variant not in recipe.variants:
            raise InputError(
                f"train.variant: unknown variant '{recipe.train.variant}'"
                f"{nearest(recipe.train.variant, recipe.variants)}"
            )
        if recipe.variants[recipe.train.variant].engine == "endpoint":
            raise InputError(
                f"train.variant: '{recipe.train.variant}' is a model behind an endpoint, and training needs its "
                "checkpoint; name a variant of engine 'vllm', if need be one that no strategy uses"
            )
        per_step = recipe.train.workers * recipe.train.micro_batch_size
        if recipe.train.batch_size % per_step:
            raise InputError(
                f"train.batch_size: {recipe.train.batch_size} is not a multiple of workers x micro_batch_size = "
                f"{recipe.train.workers} x {recipe.train.micro_batch_size}"
            )
    if sum(settings.weight for settings in recipe.strategies.values()) == 0:
        raise InputError("strategies: all weights are 0, so there is nothing to train on; give one a weight above 0")


def _check_student(recipe: Recipe, strategies: Sequence[Strategy]) -> None:
    """The trained model makes no side of a contrast whose models must all be smaller than it."""
    assert recipe.train is not None
    student = recipe.variants.get(recipe.train.variant)
    for strategy in strategies:
        for variant in strategy.variants if strategy.below_student else ():
            if student is not None and recipe.variants[variant].model == student.model != "scripted":
                raise InputError(
                    f"strategies.{strategy.name}: '{variant}' is the model that is trained (train.variant), and both "
                    f"models of {strategy.name} must be smaller than it; train a larger one, or use nparam"
                )


def _check_scores(recipe: Recipe) -> None:
    """What is asked about the pairs can be measured by what is named."""
    scores = recipe.scores
    rewarding = {name for name, variant in recipe.variants.items() if variant.engine == "reward"}
    if scores is not None:
        for key, name in (("judge", scores.judge), ("reward", scores.reward)):
            if name is not None and name not in recipe.variants:
                raise InputError(f"scores.{key}: unknown variant '{name}'{nearest(name, recipe.variants)}")
        if scores.reward is not None and recipe.variants[scores.reward].engine not in ("reward", "scripted"):
            raise InputError(f"scores.reward: variant '{scores.reward}' is not of engine 'reward'")
        if scores.judge in rewarding:
            raise InputError(f"scores.judge: variant '{scores.judge}' is of engine 'reward' and writes no text")
        if scores.keep != "all" and not getattr(scores, scores.keep):
            raise InputError(f"scores.keep: '{scores.keep}' is not measured; set scores.{scores.keep}")
    train = recipe.train
    uses = [("weight_by", train.weight_by)] if train else []
    uses += [("target_margin.by", train.target_margin.by)] if train and train.target_margin else []
    for key, name in uses:
        if name is not None and (scores is None or not getattr(scores, name)):
            raise InputError(f"train.{key}: '{name}' is not measured; set scores.{name}")


def _set(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override}: expected key=value, such as prompts.limit=64")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: the value is not YAML") from None
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise InputError(f"--set {override}: '{parent}' holds a value, not keys")
    data[last] = value


def _message(error: ValidationError, prefix: str = "") -> str:
    """The first mistake of a validation in one line, with its key."""
    first = error.errors()[0]
    branches = ("[key]", "str", "list[str]", "constrained-int", "tuple[constrained-int, constrained-int]")
    location = [str(part) for part in first["loc"] if part not in branches]
    key = ".".join(location)
    if first["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        *parents, word = location
        where = f"{'.'.join(parents)}: " if parents else ""
        return f"{where}unknown key '{word}'{nearest(word, _fields(parents))}"
    if first["type"] in {"missing", "missing_argument"}:
        return f"{prefix}{key}: is missing"
    text = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    shown = f", got {given!r}" if isinstance(given, (str, int, float)) else ""
    return f"{prefix}{key}: {text}{shown}" if key else f": {text}"


def _fields(parents: Sequence[str]) -> list[str]:
    """Known keys of the section at that place of the recipe."""
    model: Any = Recipe
    for parent in parents:
        if isinstance(model, type) and issubclass(model, BaseModel) and parent in model.model_fields:
            model = _section(model.model_fields[parent].annotation) or model
        # Below `variants` and `strategies` stand the user's own names: the section stays.
    return sorted(model.model_fields)


def _section(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for model in map(_section, getattr(annotation, "__args__", ())) if model), None)


def _data(section: Section) -> dict[str, Any]:
    out: dict[str, Any] = {}
    names = [*type(section).model_fields, *(section.model_extra or {})]
    for name in names:
        if name in section.OPERATIONAL:
            continue
        value = getattr(section, name)
        if name in section.ADDED and value == type(section).model_fields[name].default:
            continue
        if isinstance(value, Section):
            value = _data(value)
        elif isinstance(value, Mapping):
            value = {key: _data(item) if isinstance(item, Section) else item for key, item in value.items()}
        out[name] = value
    return out


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {k: v for name, item in value.items() for k, v in _flat(item, f"{key}.{name}" if key else name).items()}
    return {key: list(value) if isinstance(value, tuple) else value}
