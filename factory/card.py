"""The card of a data set, in the Hugging Face form: what is in it, how it was made, whose licences it carries."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pyarrow.compute as pc
import yaml

from factory import account
from factory.embedded import SCHEME, cache_folder
from factory.errors import InputError
from factory.export import Exported
from factory.family import kinship
from factory.recipe import Variant
from factory.run import Run
from factory.shard import parquet, shards
from factory.survey import Survey, survey

NOT_STATED = "not stated"
LICENCE_NAME = "see-licences-of-the-models"
LICENCE = (
    "There is no one licence for this data, and none is assumed. The answers are the output of the models below: their "
    "licences and terms of use decide what may be done with it, such as training other models, and so do the terms of "
    f"the prompts' source. What a model's own README states is in the table below; `{NOT_STATED}` means that nothing "
    "was found there, not that all is allowed. Whoever publishes this data should replace this paragraph after looking."
)
FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def card(run: Run, export: Exported | None = None) -> str:
    """The card of a run's pairs, or of an export of them.

    Raises:
        InputError: the run has no pairs yet.
    """
    found = survey(run.current("pairs", f"pairs {run.path}"))
    recipe, manifest = run.order.recipe, run.manifest
    kept = _kept(run)
    text = (files("factory") / "templates" / "card.md.jinja").read_text(encoding="utf-8")
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(text)
    sampling = {key: value for key, value in recipe.sampling.model_dump().items() if value not in (None, [])}
    source = recipe.prompts.source
    return template.render(
        front=yaml.safe_dump(_front(run, sum(kept.values()), export), sort_keys=False, allow_unicode=True),
        title=_title(run),
        licence=LICENCE,
        export=export,
        load=_load(run) if export is None else _load_export(export),
        strategies=[_strategy(run, name, kept) for name in recipe.strategies],
        measured=[_measured(name, found) for name in recipe.strategies],
        kinship=[kinship(run.order, name) for name in account.measuring(run).values()],
        models=[_model(name, variant) for name, variant in recipe.variants.items()],
        source=", ".join(f"`{_named(text)}`" for text in ([source] if isinstance(source, str) else source)),
        prompts=manifest["prompts"],
        heldout=recipe.prompts.heldout,
        sampling=sampling,
        seed=recipe.seed,
        preset=run.order.preset.name,
        fingerprint=run.order.fingerprint,
        checksum=manifest["pairs"]["checksum"],
        created=manifest["created"],
        versions=", ".join(f"{package} {version}" for package, version in manifest["versions"].items()),
    )


def licence_of(variant: Variant) -> str:
    """What the front matter of a model's own README states as its licence, if that README is on this machine: in the
    model's folder or in the hub's cache. Nothing is fetched, and nothing is assumed."""
    readme = _readme(variant)
    found = FRONT.match(readme.read_text(encoding="utf-8", errors="replace")) if readme and readme.is_file() else None
    try:
        stated = yaml.safe_load(found.group(1)) if found else None
    except yaml.YAMLError:
        stated = None
    if not isinstance(stated, dict) or not stated.get("license"):
        return NOT_STATED
    parts = [stated[key] for key in ("license", "license_name", "license_link") if stated.get(key)]
    return _cell(": ".join(" or ".join(map(str, part)) if isinstance(part, list) else str(part) for part in parts))


def _readme(variant: Variant) -> Path | None:
    if variant.engine == "endpoint":
        return None  # the name is the server's own, and need not be that of a folder or of the hub
    if variant.model.startswith(SCHEME):
        return cache_folder() / "models" / variant.model.removeprefix(SCHEME) / "README.md"
    folder = Path(variant.model).expanduser()
    if folder.is_dir() or variant.model.count("/") != 1:
        return folder / "README.md"
    from huggingface_hub import try_to_load_from_cache  # takes a second to import

    try:
        found = try_to_load_from_cache(variant.model, "README.md", revision=variant.revision)
    except ValueError:  # not a name of the hub
        return None
    return Path(found) if isinstance(found, str) else None


def _kept(run: Run) -> Counter[tuple[str, str]]:
    """Kept pairs by strategy and split, counted from the shards, a row group at a time."""
    kept: Counter[tuple[str, str]] = Counter()
    for shard in shards(run.current("pairs", f"pairs {run.path}")):
        with parquet(shard) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["strategy", "split", "status"])
                table = table.filter(pc.equal(table.column("status"), "kept"))
                for row in table.group_by(["strategy", "split"]).aggregate([("status", "count")]).to_pylist():
                    kept[row["strategy"], row["split"]] += row["status_count"]
    return kept


def _front(run: Run, number: int, export: Exported | None) -> dict[str, Any]:
    front: dict[str, Any] = {
        "pretty_name": _title(run),
        "license": "other",
        "license_name": LICENCE_NAME,
        "task_categories": ["text-generation"],
        "size_categories": [next((size for limit, size in SIZES if number < limit), "n>1M")],
        "tags": ["preference", "dpo", "synthetic", "popalign", *run.order.recipe.strategies],
    }
    if export is not None:
        data = [{"split": file.split, "path": file.name} for file in export.files]
        front["configs"] = [{"config_name": "default", "data_files": data}]
    return front


def _title(run: Run) -> str:
    return f"Preference pairs of {run.path.name}"


def _strategy(run: Run, name: str, kept: Counter[tuple[str, str]]) -> dict[str, Any]:
    strategy = next(strategy for strategy in run.order.strategies if strategy.name == name)
    outcomes = run.manifest["pairs"]["strategies"][name]
    train, heldout = kept[name, "train"], kept[name, "heldout"]
    if train + heldout != outcomes["kept"]:
        raise InputError(
            f"{run.path}: the manifest says that {outcomes['kept']} pairs of '{name}' are kept, the shards hold "
            f"{train + heldout}; make them again with: popalign pairs {run.path}"
        )
    reasons = [f"{n} {reason}" for part in ("rejected", "failed") for reason, n in outcomes[part].items()]
    return {
        "name": name,
        "level": strategy.level,
        "variants": ", ".join(strategy.variants) or "nothing is generated",
        "words": " ".join((inspect.getdoc(type(strategy)) or "").replace("``", "`").split()),
        "kept": outcomes["kept"],
        "train": train,
        "heldout": heldout,
        "rejected": sum(outcomes["rejected"].values()),
        "failed": sum(outcomes["failed"].values()),
        "reasons": ", ".join(reasons),
    }


def _measured(name: str, found: Survey) -> dict[str, str]:
    """What was measured about the kept pairs of a strategy, as cells of a table."""
    length = account.lengths(name, found, None)["all"]
    agreed = account.accuracy(name, found)
    apart = length is not None and length["d"] is not None
    return {
        "name": name,
        "length": f"{length['d']:+.2f}" if apart else "-",
        "longer": f"{length['longer_is_chosen']:.0%}" if apart else "-",
        **{measure: _share(agreed[measure]) for measure in ("margin", "judge", "reward")},
    }


def _share(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not measured"
    raw = found["raw"]
    ties = f", {raw['ties']} ties" if raw.get("ties") else ""
    share = f"{raw['share']:.0%} ({raw['low']:.0%} to {raw['high']:.0%})" if raw["n"] else "-"
    return f"{share} of {raw['n']}{ties}"


def _model(name: str, variant: Variant) -> dict[str, str]:
    unknown = {"endpoint": "not known (a server's)", "scripted": "none (made-up text)"}.get(
        variant.engine, "not pinned"
    )
    return {
        "name": name,
        "engine": variant.engine,
        "model": _cell(_named(variant.model)),
        "revision": _cell(variant.revision or unknown),
        "licence": licence_of(variant),
    }


def _named(where: str) -> str:
    """A model or a source without the folders of this machine that it lies in, which are nobody else's business."""
    return Path(where).name if Path(where).expanduser().is_absolute() else where


def _cell(text: str) -> str:
    """Text in a cell of a table, of one line."""
    return " ".join(text.split()).replace("|", "\\|")


def _load(run: Run) -> str:
    entry = run.manifest["pairs"]["set"]
    return (
        "from datasets import load_dataset  # in the folder of the run\n\n"
        f'pairs = load_dataset("parquet", data_files="pairs/{entry}/*.parquet", split="train")\n'
        'kept = pairs.filter(lambda row: row["status"] == "kept")\n'
        'train = kept.filter(lambda row: row["split"] == "train")\n'
        'heldout = kept.filter(lambda row: row["split"] == "heldout")'
    )


def _load_export(export: Exported) -> str:
    names = ", ".join(f'"{file.split}": "{file.name}"' for file in export.files)
    return (
        "from datasets import load_dataset  # in this folder; once pushed, load_dataset(NAME) does it\n\n"
        f'data = load_dataset("json", data_files={{{names}}})\n'
        + "\n".join(f'{file.split} = data["{file.split}"]  # {file.rows:,} rows' for file in export.files)
    )
