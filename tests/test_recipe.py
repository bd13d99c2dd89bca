"""The recipe: what is shipped, what a mistake is answered with, and what identifies the data of a run."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from factory import cookbook
from factory.cookbook import Order, built_in, order
from factory.errors import InputError
from factory.recipe import (
    CheckSettings,
    Evaluate,
    Prompts,
    Recipe,
    Sampling,
    Scores,
    Section,
    StrategySettings,
    TargetMargin,
    Train,
    Variant,
)
from factory.wording import load_preset
from strategies.catalogue import BUILT_IN, SIX
from strategies.contrast import Message
from strategies.preset import Preset

ASK = (Message("user", "Name a river."),)

# All others but the judged one and the labelled one, which the embedded model has no use for.
NEIGHBOURS = {*BUILT_IN} - {*SIX, "rlaif", "label"} | {"refine"}

RECIPE: dict[str, Any] = {
    "run": "runs/x",
    "prompts": {"source": "prompts.jsonl"},
    "variants": {"strong": {"model": "a"}, "second": {"model": "b"}, "small": {"model": "c"}},
    "strategies": {
        "prefix": {"variant": "strong"},
        "demon": {"variant": "strong"},
        "elicitive": {"variant": "strong"},
        "nparam": {"chosen": "strong", "rejected": "small"},
        "leaderboard": {"ladder": ["strong", "second"]},
        "refine": {"variant": "strong"},
    },
    "train": {"variant": "small"},
}


def made(**changes: Any) -> Order:
    """The order of RECIPE with some dotted keys (written with __) set."""
    return cookbook.check(changed({key.replace("__", "."): value for key, value in changes.items()}), "r")


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    data = deepcopy(RECIPE)
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return data


def written(folder: Path, data: Any, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return str(path)


def mistake(name: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        order(name, overrides)
    text = str(caught.value)
    assert "\n" not in text, "one line"
    return text


@pytest.mark.parametrize("name", built_in())
def test_recipe_built_in_parses(name: str) -> None:
    found = order(name)
    assert {s.name for s in found.strategies} == (NEIGHBOURS if name == "neighbours" else set(SIX))
    assert found.recipe.preset in {"alignment", "leaderboard"}
    assert found.recipe.train is not None and found.recipe.train.variant in found.recipe.variants


def test_recipe_built_in_names_are_those_of_the_files() -> None:
    assert set(built_in()) >= {"demo", "alignment", "leaderboard"}
    assert set(built_in()) == {Path(f.name).stem for f in (files("factory") / "recipes").iterdir() if "yaml" in f.name}


@pytest.mark.parametrize("name", ["alignment", "leaderboard"])
def test_recipe_of_the_paper_has_its_numbers(name: str) -> None:
    recipe = order(name).recipe
    assert recipe.preset == name
    assert recipe.share is True
    assert (recipe.prompts.max_tokens, recipe.sampling.max_tokens) == (1024, 1024)
    train = recipe.train
    assert train is not None
    assert (train.beta, train.learning_rate, train.warmup, train.epochs) == (0.01, 5e-7, 0.1, 1)
    assert (train.batch_size, train.max_length, train.sharding) == (128, 2048, "zero2")
    assert {settings.weight for settings in recipe.strategies.values()} == {1.0}
    assert recipe.strategies["elicitive"].options["format"] == recipe.strategies["refine"].options["format"] == "free"


def test_recipe_demo_forces_the_form() -> None:
    options = {name: settings.options for name, settings in order("demo").recipe.strategies.items()}
    assert options["elicitive"]["format"] == options["refine"]["format"] == "forced"


def test_recipe_file_is_the_same_order_as_its_content(tmp_path: Path) -> None:
    assert order(written(tmp_path, RECIPE)) == cookbook.check(deepcopy(RECIPE), "x")


@pytest.mark.parametrize("name", SIX)
def test_recipe_strategy_alone_gives_only_that(name: str) -> None:
    found = made(strategies={name: RECIPE["strategies"][name]})
    assert [s.name for s in found.strategies] == [name]


# A key that is not known, at every depth.
@pytest.mark.parametrize(
    ("override", "where", "hint"),
    [
        ("sede=1", "unknown key 'sede'", "did you mean 'seed'?"),
        ("promts.limit=1", "unknown key 'promts'", "did you mean 'prompts'?"),
        ("prompts.colum=x", "prompts: unknown key 'colum'", "did you mean 'column'?"),
        ("sampling.temprature=1", "sampling: unknown key 'temprature'", "did you mean 'temperature'?"),
        ("variants.strong.modle=x", "variants.strong: unknown key 'modle'", "did you mean 'model'?"),
        ("train.bata=1", "train: unknown key 'bata'", "did you mean 'beta'?"),
        ("evaluate.sample=1", "evaluate: unknown key 'sample'", "did you mean 'samples'?"),
        ("strategies.prefix.varient=strong", "strategies.prefix: unknown key 'varient'", "did you mean 'variant'?"),
        ("strategies.prefix.wieght=2", "strategies.prefix: unknown key 'wieght'", "did you mean 'weight'?"),
        ("strategies.nparam.chosn=strong", "strategies.nparam: unknown key 'chosn'", "did you mean 'chosen'?"),
        ("strategies.demon.affix=prefill", "strategies.demon: unknown key 'affix'", "known: variant, weight"),
        # Fields of a strategy that are not the recipe's to set.
        ("strategies.prefix.sample=1", "strategies.prefix: unknown key 'sample'", "known: affix, variant, weight"),
        ("strategies.prefix.preset=x", "strategies.prefix: unknown key 'preset'", "known: affix, variant, weight"),
        ("strategies.prefixx={variant: strong}", "strategies: unknown strategy 'prefixx'", "did you mean 'prefix'?"),
        ("strategies.prefix.variant=strng", "strategies.prefix: unknown variant 'strng'", "did you mean 'strong'?"),
        ("strategies.nparam.rejected=smal", "strategies.nparam: unknown variant 'smal'", "did you mean 'small'?"),
        (
            "strategies.leaderboard.ladder=[strong, secnd]",
            "strategies.leaderboard: unknown variant 'secnd'",
            "did you mean 'second'?",
        ),
        ("train.variant=smal", "train.variant: unknown variant 'smal'", "did you mean 'small'?"),
        ("preset=leaderbord", "preset: unknown preset 'leaderbord'", "did you mean 'leaderboard'?"),
    ],
)
def test_recipe_unknown_word_is_named_with_the_nearest(override: str, where: str, hint: str) -> None:
    text = mistake("leaderboard", override)
    assert text.startswith("recipe leaderboard: ")
    assert where in text and hint in text


def test_recipe_variant_named_like_a_field_does_not_confuse_the_hint() -> None:
    assert "variants.model: unknown key 'modle'; did you mean 'model'?" in mistake(
        "leaderboard", "variants.model.modle=x"
    )


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("seed=x", ("seed: ", "integer", "'x'")),
        ("seed=1.5", ("seed: ", "1.5")),
        ("share=perhaps", ("share: ", "boolean", "'perhaps'")),
        ("schedule=phasd", ("schedule: ", "'phased'", "got 'phasd'")),
        ("run=''", ("run: ",)),
        ("run=5", ("run: ", "string", "got 5")),
        ("rows_per_task=0", ("rows_per_task: ", "got 0")),
        ("prompts=null", ("prompts: ",)),
        ("prompts.limit=0", ("prompts.limit: ", "got 0")),
        ("prompts.heldout=1", ("prompts.heldout: ", "less than 1", "got 1")),
        ("prompts.source=[]", ("prompts.source: ",)),
        ("sampling=3", ("sampling: ", "got 3")),
        ("sampling.top_p=0", ("sampling.top_p: ", "greater than 0")),
        ("sampling.temperature=-1", ("sampling.temperature: ", "got -1")),
        ("sampling.temperature=.nan", ("sampling.temperature: ",)),
        ("sampling.temperature=.inf", ("sampling.temperature: ",)),
        ("sampling.stop=['']", ("sampling.stop",)),  # vLLM refuses an empty stop text, one request after another
        ("variants={}", ("variants: ", "at least 1")),
        (
            "variants.strong.engine=vlm",
            ("variants.strong.engine: ", "'vllm', 'endpoint', 'reward' or", "'vlm'"),
        ),
        ("variants.strong.gpus=1.5", ("variants.strong: gpus is 1.5", "whole number")),
        ("variants.strong.speed=4", ("variants.strong: speed is for engine 'scripted'",)),
        ("variants.strong.replicas=0", ("variants.strong.replicas: ",)),
        ("variants.a b={}", ("variants.a b: ", "pattern")),
        ("strategies=[prefix]", ("strategies: ", "dictionary")),
        ("strategies=null", ("strategies: ",)),
        ("strategies.prefix=5", ("strategies.prefix: ", "got 5")),
        ("strategies.prefix.variant=5", ("strategies.prefix.variant: ", "string", "got 5")),
        ("strategies.prefix.variant=null", ("strategies.prefix.variant: ", "string")),
        ("strategies.prefix={}", ("strategies.prefix.variant: is missing",)),
        ("strategies.prefix.affix=systm", ("strategies.prefix.affix: ", "'prefill' or 'system'", "'systm'")),
        ("strategies.prefix.weight=-1", ("strategies.prefix.weight: ", "got -1")),
        ("strategies.prefix.weight=.inf", ("strategies.prefix.weight: ",)),  # a share against infinity is none
        ("strategies.elicitive.format=force", ("strategies.elicitive.format: ", "'free' or 'forced'")),
        ("strategies.elicitive.thought_tokens=x", ("strategies.elicitive.thought_tokens: ", "integer")),
        ("strategies.elicitive.thought_tokens=0", ("strategies.elicitive", "thought_tokens", "0")),
        ("strategies.refine.thought_tokens=-5", ("strategies.refine", "thought_tokens", "-5")),
        ("strategies.nparam.rejected=strong", ("strategies.nparam: ", "both 'strong'", "two variants")),
        ("strategies.leaderboard.ladder=strong", ("strategies.leaderboard.ladder: ", "'strong'")),
        ("strategies.leaderboard.ladder=[strong]", ("strategies.leaderboard: ladder needs at least two",)),
        ("strategies.leaderboard.ladder=[small, small]", ("strategies.leaderboard: ladder names 'small' twice",)),
        ("train.sharding=zero1", ("train.sharding: ", "'zero2'", "'zero1'")),
        ("train.learning_rate=0", ("train.learning_rate: ",)),
        ("train.learning_rate=.inf", ("train.learning_rate: ",)),
        # 128 pairs a step cannot be spread evenly over 7 workers of 1.
        ("train.workers=7", ("train.batch_size: 128 is not a multiple", "7 x 1")),
        ("train.micro_batch_size=3", ("train.batch_size: 128 is not a multiple", "8 x 3")),
    ],
)
def test_recipe_wrong_value_is_named_with_its_key(override: str, parts: tuple[str, ...]) -> None:
    text = mistake("leaderboard", override)
    assert text.startswith("recipe leaderboard: ")
    for part in parts:
        assert part in text


def test_recipe_wrong_type_of_source_names_only_keys_that_exist() -> None:
    text = mistake("leaderboard", "prompts.source=5")
    assert "prompts.source: " in text and "prompts.source.str" not in text


@pytest.mark.parametrize("missing", ["run", "prompts", "variants", "strategies"])
def test_recipe_missing_key_is_named(missing: str, tmp_path: Path) -> None:
    data = {key: value for key, value in RECIPE.items() if key != missing}
    assert mistake(written(tmp_path, data)).endswith(f": {missing}: is missing")


def test_recipe_missing_key_below_is_named(tmp_path: Path) -> None:
    assert "prompts.source: is missing" in mistake(written(tmp_path, changed({"prompts": {"limit": 4}})))
    assert "train.variant: is missing" in mistake(written(tmp_path, changed({"train": {"workers": 1}})))


def test_recipe_weights_that_sum_to_zero_are_refused(tmp_path: Path) -> None:
    zero = {name: {**settings, "weight": 0} for name, settings in RECIPE["strategies"].items()}
    assert "strategies: all weights are 0" in mistake(written(tmp_path, changed({"strategies": zero})))
    zero["refine"]["weight"] = 0.5
    assert order(written(tmp_path, changed({"strategies": zero}))).recipe.strategies["refine"].weight == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: [", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("- run\n- prompts\n", "is not a mapping"),
        ("just text", "is not a mapping"),
        ("", "is not a mapping"),
        ("!!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_recipe_file_that_is_no_mapping_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    found = mistake(path)
    assert path in found and message in found


def test_recipe_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes("run: caf\xe9\n".encode("latin-1"))
    assert mistake(str(path)) == f"recipe {path} is not UTF-8 text"


def test_recipe_missing_file_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "none.yaml")
    assert mistake(path) == f"cannot read recipe {path}: No such file or directory"


def test_recipe_directory_is_refused(tmp_path: Path) -> None:
    assert mistake(str(tmp_path)) == f"cannot read recipe {tmp_path}: Is a directory"


def test_recipe_unknown_name_is_answered_with_the_nearest() -> None:
    assert mistake("leaderbord").startswith("unknown recipe 'leaderbord'; did you mean 'leaderboard'?")
    assert "known: alignment, demo" in mistake("zzz")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("limit", "--set limit: expected key=value"),
        ("=3", "--set =3: expected key=value"),
        ("", "expected key=value"),
        ("run.x=1", "--set run.x=1: 'run' holds a value, not keys"),
        ("run=[", "--set run=[: the value is not YAML"),
    ],
)
def test_set_wrong_form_is_named(override: str, message: str) -> None:
    assert message in mistake("leaderboard", override)


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("seed=7", ("seed",), 7),
        ("run=runs/a=b", ("run",), "runs/a=b"),  # only the first = divides
        ("share=false", ("share",), False),
        ("prompts.limit=64", ("prompts", "limit"), 64),
        ("prompts.limit=null", ("prompts", "limit"), None),
        ("prompts.limit=", ("prompts", "limit"), None),
        ("prompts.source=[a.jsonl, b.csv]", ("prompts", "source"), ["a.jsonl", "b.csv"]),
        ("sampling.temperature=1", ("sampling", "temperature"), 1.0),
        ("evaluate.samples=0", ("evaluate", "samples"), 0),
        ("train=null", ("train",), None),
    ],
)
def test_set_value_arrives(override: str, path: tuple[str, ...], expected: Any) -> None:
    found: Any = order("leaderboard", [override]).recipe
    for part in path:
        found = getattr(found, part)
    assert found == expected


def test_set_section_that_is_absent_is_made(tmp_path: Path) -> None:
    assert order(written(tmp_path, RECIPE), ["evaluate.samples=2"]).recipe.evaluate.samples == 2


def test_set_last_one_wins() -> None:
    assert order("leaderboard", ["seed=1", "seed=2"]).recipe.seed == 2


def test_set_new_variant_is_added() -> None:
    found = order("leaderboard", ["variants.third.model=x/y", "strategies.leaderboard.ladder=[strong, second, third]"])
    assert found.recipe.variants["third"].model == "x/y"
    (ladder,) = [s for s in found.strategies if s.name == "leaderboard"]
    assert ladder.variants == ("strong", "second", "third")


def test_set_null_removes_a_strategy() -> None:
    found = order("leaderboard", ["strategies.refine=null"])
    assert [s.name for s in found.strategies] == ["prefix", "demon", "elicitive", "nparam", "leaderboard"]
    assert "refine" not in found.recipe.strategies


def test_set_null_on_every_strategy_is_refused() -> None:
    text = mistake("leaderboard", *(f"strategies.{name}=null" for name in SIX))
    assert "strategies: " in text and "at least 1" in text


def test_set_does_not_leak_into_the_next_order() -> None:
    before = order("leaderboard").fingerprint
    order("leaderboard", ["seed=1"])
    assert order("leaderboard").fingerprint == before


# Another value for every field of the recipe. A field that is not here fails the first test below: add it, and it is
# held to what its section's OPERATIONAL says.
CHANGED: dict[type[Section], dict[str, Any]] = {
    Recipe: {
        "run": "runs/y",
        "seed": 1,
        "preset": "alignment",
        "share": False,
        "schedule": "phased",
        "rows_per_task": 3,
        "max_failure_rate": 0.3,
        "balance_length": 0.3,
        # Sections as a whole; their fields come one by one below.
        "prompts": {"source": "other.jsonl"},
        "sampling": {"max_tokens": 3},
        "variants": {name: {"model": "z"} for name in ("strong", "second", "small")},
        "strategies": {"demon": {"variant": "strong"}},
        "train": None,
        "evaluate": {"samples": 1},
        "scores": {"share": 0.3},
        "checks": {"echo": False},
    },
    Prompts: {
        "source": ["a.jsonl"],
        "column": "text",
        "limit": 3,
        "heldout": 0.3,
        "max_tokens": 3,
        "near_duplicates": 0.8,
        "decontaminate": ["evaluation.jsonl"],
        "decontaminate_ngram": 13,
        "decontaminate_share": 0.3,
    },
    Sampling: {
        "temperature": 0.3,
        "top_p": 0.3,
        "max_tokens": 3,
        "min_tokens": 3,
        "repetition_penalty": 1.3,
        "stop": ["\n\n"],
    },
    Variant: {
        "model": "z",
        "revision": "abc",
        "engine": "scripted",
        "dtype": "float32",
        "max_model_len": 3,
        "trust_remote_code": True,
        "temperature": 0.3,
        "top_p": 0.3,
        "cpus": 3,
        "gpus": 3,
        "deadline": 3,
        "replicas": 3,
        "max_num_seqs": 3,
        "max_num_batched_tokens": 3,
        "gpu_memory": 0.3,
        "kv_cache_gib": 3,
        "speed": 3,  # needs the engine `scripted`, and those below `endpoint`
        "url": "http://elsewhere/v1",
        "api_key_env": "SERVER_KEY",
        "request_timeout": 3,
        "patience": 3,
    },
    StrategySettings: {"weight": 0.3, "samples": 3},
    Scores: {"share": 0.3, "margin": False, "judge": "small", "reward": "score", "keep": "judge"},
    CheckSettings: {
        "truncated": False,
        "echo": False,
        "leak": ["role"],
        "repetition": 0.3,
        "language": False,
        "prompt_copy": 0.3,
        "refusal": "benign",
        "near_identical": 0.3,
        "unfinished": False,
        "near_duplicate": 0.8,
    },
    TargetMargin: {"by": "reward", "scale": 0.3, "clamp": 3.0},
    Train: {
        "variant": "strong",
        "workers": 2,
        "cpus_per_worker": 3,
        "gpus_per_worker": 1,
        "beta": 0.3,
        "learning_rate": 0.3,
        "warmup": 0.3,
        "epochs": 3,
        "batch_size": 3,
        "micro_batch_size": 2,
        "max_length": 3,
        "max_pairs": 3,
        "weight_by": "margin",
        "target_margin": {"by": "margin"},
        "precision": "fp32",
        "gradient_checkpointing": False,
        "sharding": "zero3",
        "save_steps": 3,
        "max_failures": 3,
    },
    Evaluate: {"max_pairs": 3, "samples": 3, "sample_tokens": 3},
}
PLACE = {
    Recipe: "",
    Prompts: "prompts.",
    Sampling: "sampling.",
    Variant: "variants.strong.",
    StrategySettings: "strategies.prefix.",
    Scores: "scores.",
    CheckSettings: "checks.",
    TargetMargin: "train.target_margin.",
    Train: "train.",
    Evaluate: "evaluate.",
}


def sections(section: type[Section] = Section) -> Iterator[type[Section]]:
    for below in section.__subclasses__():
        yield below
        yield from sections(below)


def test_fingerprint_tests_know_every_field_of_every_section() -> None:
    assert {s: set(s.model_fields) for s in sections()} == {s: set(values) for s, values in CHANGED.items()}
    for section in sections():
        assert set(section.model_fields) >= section.OPERATIONAL | section.ADDED, "a name that is no field"


def test_fingerprint_of_runs_of_older_versions_is_kept_while_added_fields_are_at_their_default() -> None:
    added = [PLACE[section] + name for section in sections() for name in section.ADDED]
    assert "prompts.near_duplicates" in added
    assert not set(added) & set(made().data())
    written = {"prompts.near_duplicates": None, "prompts.decontaminate": [], "prompts.decontaminate_ngram": 8}
    assert cookbook.check(changed(written), "r").fingerprint == made().fingerprint


@pytest.mark.parametrize(("section", "name"), [(s, name) for s, values in CHANGED.items() for name in values])
def test_fingerprint_changes_with_every_field_but_the_operational(section: type[Section], name: str) -> None:
    place: dict[str, Any] = {"variants.strong.engine": "scripted"} if name == "speed" else {}
    if name in {"url", "api_key_env", "request_timeout", "patience"}:
        place = {"variants.strong.engine": "endpoint", "variants.strong.url": "http://here/v1"}
    if section is TargetMargin:
        place = {"train.target_margin.by": "margin", "scores.reward": "score"}
    if section in {Scores, TargetMargin} or name in {"weight_by", "target_margin"}:
        place |= {"scores.judge": "strong", "variants.score.engine": "reward", "variants.score.model": "z"}
    base = cookbook.check(changed(place), "r")
    other = cookbook.check(changed({**place, PLACE[section] + name: CHANGED[section][name]}), "r")
    assert other.recipe != base.recipe
    # Everything below `train` and `evaluate` says how a model is made and looked at, not which pairs come out; `checks`
    # decides which are kept of the same generations, and the pairs say by which they were.
    operational = name in section.OPERATIONAL or section in {CheckSettings, TargetMargin, Train, Evaluate}
    assert (other.fingerprint == base.fingerprint) == operational
    assert (other.data() == base.data()) == operational


OPTIONS: dict[str, dict[str, Any]] = {
    "prefix": {"variant": "small", "affix": "system"},
    "demon": {"variant": "small"},
    "elicitive": {"variant": "small", "format": "forced", "thought_tokens": 3},
    "nparam": {"chosen": "second", "rejected": "second", "affix": "system"},
    "leaderboard": {"ladder": ["second", "strong"]},
    "refine": {"variant": "small", "format": "forced", "thought_tokens": 3, "rounds": 2, "max_change": 0.3},
    "rlcd": {"variant": "small", "affix": "system"},
    "system": {"variant": "small"},
    "context-distill": {"variant": "small"},
    "temperature": {"variant": "small", "low": 0, "high": 2},
    "delta": {"chosen": "third", "rejected": "third"},
    "revise": {"student": "third", "teacher": "third", "format": "forced", "thought_tokens": 3, "max_change": 0.3},
    "worsen": {"variant": "small", "editor": "small", "format": "forced", "thought_tokens": 3, "max_change": 0.3},
    "rlaif": {"variant": "small", "judge": "second"},
    "label": {},
}


# What the others are changed from.
ADDED: dict[str, dict[str, Any]] = {
    "rlcd": {"variant": "strong"},
    "system": {"variant": "strong"},
    "context-distill": {"variant": "strong"},
    "temperature": {"variant": "strong"},
    "delta": {"chosen": "strong", "rejected": "second"},
    "revise": {"student": "second", "teacher": "strong"},
    "worsen": {"variant": "strong"},
    "rlaif": {"variant": "strong", "judge": "strong"},
}


def test_fingerprint_tests_know_every_option_of_every_strategy() -> None:
    own = {name: {f.name for f in fields(strategy)} - {"preset", "sample"} for name, strategy in BUILT_IN.items()}
    assert own == {name: set(options) for name, options in OPTIONS.items()}


@pytest.mark.parametrize(("strategy", "option"), [(name, option) for name, of in OPTIONS.items() for option in of])
def test_fingerprint_changes_with_every_option_of_a_strategy(strategy: str, option: str) -> None:
    before = {} if strategy in SIX else {f"strategies.{strategy}": ADDED[strategy], "variants.third": {"model": "d"}}
    other = cookbook.check(
        changed({**deepcopy(before), f"strategies.{strategy}.{option}": OPTIONS[strategy][option]}), "r"
    )
    assert other.fingerprint != cookbook.check(changed(before), "r").fingerprint


def test_fingerprint_is_the_same_for_equal_recipes() -> None:
    assert made().fingerprint == made().fingerprint
    assert len(made().fingerprint) == 16 and int(made().fingerprint, 16) >= 0


def test_fingerprint_default_that_is_written_out_is_no_change() -> None:
    assert made(seed=0).fingerprint == made().fingerprint
    assert made(sampling__max_tokens=1024).fingerprint == made().fingerprint
    assert made(sampling__temperature=1).fingerprint == made(sampling__temperature=1.0).fingerprint


def test_fingerprint_default_option_of_a_strategy_that_is_written_out_is_no_change() -> None:
    assert made(strategies__elicitive__format="free").strategies == made().strategies
    assert made(strategies__elicitive__format="free").fingerprint == made().fingerprint


def test_fingerprint_without_a_strategy_changes() -> None:
    assert made(strategies__refine=None).fingerprint != made().fingerprint


@pytest.mark.parametrize("share", [True, False])
def test_fingerprint_equal_means_that_the_same_generations_are_owed(share: bool) -> None:
    """Strategies in another order are the same recipe, or another one: but not the same one with other requests."""
    turned = dict(reversed(RECIPE["strategies"].items()))
    one, other = made(share=share), made(share=share, strategies=turned)

    def owed(of: Order) -> set[str]:
        contrasts = [strategy.contrast(ASK) for strategy in of.strategies]
        return {g.id for c in contrasts for side in (c.chosen, c.rejected) for g in side.walk()}

    assert (one.fingerprint == other.fingerprint) == (owed(one) == owed(other))


def preset_text(name: str = "leaderboard") -> str:
    return (files("strategies") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def test_preset_file_replaces_the_wording_and_changes_the_fingerprint(tmp_path: Path) -> None:
    own = preset_text().replace("(good response)", "(fine response)")
    found = made(preset=written(tmp_path, own, "own.yaml"))
    assert found.preset.affix.chosen == "(fine response)"
    assert found.strategies[0].contrast(ASK).chosen.prefill == "(fine response)"
    assert found.fingerprint != made().fingerprint


def test_preset_file_with_another_wording_at_the_same_path_changes_the_fingerprint(tmp_path: Path) -> None:
    path = written(tmp_path, preset_text(), "own.yaml")
    before = made(preset=path).fingerprint
    written(tmp_path, preset_text().replace("Who cares.", "So what."), "own.yaml")
    assert made(preset=path).fingerprint != before


@pytest.mark.parametrize("name", ["alignment", "leaderboard"])
def test_preset_file_that_is_a_copy_holds_the_same_words(name: str, tmp_path: Path) -> None:
    assert load_preset(written(tmp_path, preset_text(name), f"{name}.yaml")) == load_preset(name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("nparam_affix: false", "", "nparam_affix is missing"),
        ("nparam_affix: false", "nparam_affix: perhaps", "nparam_affix"),
        ("  chosen: (good response)\n", "", "affix.chosen"),
        ("affix:", "afix:", "affix is missing"),
        ("thought: what would make", "thinking: what would make", "refine.thought"),
        ("affix:", "affix: [", "preset: "),
    ],
)
def test_preset_file_mistake_names_file_and_key(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = preset_text()
    assert old in text
    path = written(tmp_path, text.replace(old, new, 1), "own.yaml")
    found = mistake("leaderboard", f"preset={path}")
    assert path in found and message in found


@pytest.mark.parametrize("section", Preset.SECTIONS)
def test_preset_file_without_a_neighbours_section_serves_the_six(section: str, tmp_path: Path) -> None:
    data = {key: value for key, value in yaml.safe_load(preset_text()).items() if key != section}
    path = written(tmp_path, data, "leaderboard.yaml")
    assert made(preset=path).strategies == tuple(
        replace(strategy, preset=load_preset(path)) for strategy in made().strategies
    )
    (name,) = [name for name, strategy in BUILT_IN.items() if section in strategy.wording]
    found = mistake("neighbours", f"preset={path}")
    assert f"strategies.{name}: preset {path} has no key `{section}`; add it" in found


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("rlcd", [{"chosen": "(a)"}], "rlcd.0.rejected"),
        ("rlcd", "(a)", "rlcd"),
        ("system", [{"chosen": "a", "rejected": 5}], "system.0.rejected"),
        ("context", ["a"], "context"),
        ("revise", {"instruction": "a", "thought": "b"}, "revise.response"),
        ("worsen", "a", "worsen"),
    ],
)
def test_preset_file_mistake_in_a_neighbours_section_is_named(
    section: str, value: Any, message: str, tmp_path: Path
) -> None:
    data = {**yaml.safe_load(preset_text()), section: value}
    assert f"own.yaml: {message}" in mistake("leaderboard", f"preset={written(tmp_path, data, 'own.yaml')}")


def test_preset_wording_of_a_neighbour_is_no_part_of_a_run_without_it(tmp_path: Path) -> None:
    path = written(tmp_path, preset_text(), "leaderboard.yaml")
    before = made(preset=path)
    with_it = made(preset=path, strategies__rlcd={"variant": "strong"})
    added = {key for key in with_it.data() if key not in before.data()}
    assert added and all(key.startswith("strategies.rlcd.") for key in added), "a run that is there can be extended"
    written(tmp_path, preset_text().replace("(best response)", "(finest response)"), "leaderboard.yaml")
    assert made(preset=path).fingerprint == before.fingerprint
    assert made(preset=path, strategies__rlcd={"variant": "strong"}).fingerprint != with_it.fingerprint
    assert before.preset.rlcd == () and len(with_it.preset.rlcd) == 12  # what steers nothing is not looked for


def test_recipe_delta_that_trains_one_of_its_models_is_refused() -> None:
    given = {"strategies__delta": {"chosen": "second", "rejected": "small"}}
    assert made(**given, train__variant="strong").strategies[-1].name == "delta"
    with pytest.raises(InputError, match=r"strategies\.delta: 'small' is the model that is trained"):
        made(**given, train__variant="small")
    # Another variant of the same checkpoint is the same model.
    with pytest.raises(InputError, match=r"strategies\.delta: 'second' is the model that is trained"):
        made(**given, train__variant="strong", variants__strong={"model": "b"})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("temperature={variant: student, low: 0, high: 0}", "low is 0.0 and high is 0.0"),
        ("temperature={variant: student, low: 1, high: 0.5}", "low is 1.0 and high is 0.5"),
        ("temperature={variant: student, low: -1}", "low is -1.0"),
        ("refine.rounds=0", "rounds is 0; it must be between 1 and 4"),
        ("refine.rounds=5", "rounds is 5"),
        ("refine.max_change=0", "max_change is 0.0"),
        ("worsen.max_change=1", "max_change is 1.0"),
        ("revise.thought_tokens=0", "thought_tokens is 0"),
        ("revise.teacher=small", "student and teacher are both 'small'"),
        ("worsen.editor=smal", "unknown variant 'smal'; did you mean 'small'?"),
        ("delta.rejected=second", "chosen and rejected are both 'second'"),
        ("context-distill.varient=small", "strategies.context-distill: unknown key 'varient'; did you mean 'variant'?"),
        ("context-destill={variant: small}", "did you mean 'context-distill'?"),
    ],
)
def test_recipe_neighbours_mistake_is_named(override: str, said: str) -> None:
    text = mistake("neighbours", f"strategies.{override}")
    assert text.startswith("recipe neighbours: strategies") and said in text


def test_preset_file_needs_three_demonstrations(tmp_path: Path) -> None:
    data = yaml.safe_load(preset_text())
    data["demonstrations"].pop()
    assert "2 demonstrations" in mistake("leaderboard", f"preset={written(tmp_path, data, 'own.yaml')}")


def test_preset_file_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert f"preset: cannot read {path}" in mistake("leaderboard", f"preset={path}")


def test_preset_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(preset_text().replace("good", "caf\xe9", 1).encode("latin-1"))
    assert str(path) in mistake("leaderboard", f"preset={path}")


@pytest.mark.parametrize("text", ["", "- a\n", "text"])
def test_preset_file_that_is_no_mapping_is_named(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text, "own.yaml")
    assert path in mistake("leaderboard", f"preset={path}")
