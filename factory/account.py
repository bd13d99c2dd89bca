"""The account of a run: every figure of its report as plain data, from the manifest and the shards.

What the manifest says of the pairs is not taken over: outcomes, lengths and accuracies are counted again in the
Parquet, and the two are compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from factory.family import kinship
from factory.length import Cells
from factory.run import Run
from factory.statistic import quantile, wilson
from factory.survey import VERDICTS, Survey

STATUSES = ("kept", "rejected", "failed")
FINGERPRINTS = ("prompts", "generations", "pairs")

Json = dict[str, Any]


def account(run: Run, found: Survey) -> Json:
    """All figures. Those of pairs are by strategy, in the order of the recipe."""
    manifest = run.manifest
    strategies = [*run.order.recipe.strategies]
    return {
        "run": header(run, manifest, found),
        "flow": flow(manifest, strategies, found.outcomes),
        "accuracy": [accuracy(name, found) for name in strategies],
        "kinship": {key: kinship(run.order, name) for key, name in measuring(run).items()},
        "lengths": [lengths(name, found, manifest.get("pairs", {}).get("balance")) for name in strategies],
        "effort": effort(manifest),
        "models": models(run, manifest),
        "training": training(manifest),
    }


def header(run: Run, manifest: Json, found: Survey) -> Json:
    """What run this is."""
    return {
        "path": str(run.path),
        "name": run.path.name,
        "preset": run.order.preset.name,
        "seed": run.order.recipe.seed,
        "created": manifest.get("created"),
        "fingerprint": run.order.fingerprint,
        "prompts": manifest["prompts"]["ready"],
        "pairs": found.num_pairs,
        "kept": sum(n for (_, status, _), n in found.outcomes.items() if status == "kept"),
    }


def flow(manifest: Json, strategies: list[str], outcomes: Mapping[tuple[str, str, str], int]) -> Json:
    """From prompts to kept pairs, with the sums that have to come out even."""
    prompts = manifest["prompts"]
    aside = [{"reason": reason, "prompts": n} for reason, n in prompts["set_aside"].items()]
    made = manifest.get("generations", {}).get("by_variant", {})
    # A run of an older version counts requests.
    completions = {name: count.get("completions", count.get("requests", 0)) for name, count in made.items()}
    rows = [_outcomes(name, outcomes) for name in strategies]
    totals: Json = {status: sum(row[status] for row in rows) for status in STATUSES}
    totals["pairs"] = sum(row["pairs"] for row in rows)
    return {
        "prompts": {"read": prompts["read"], "duplicates": prompts["duplicates"], "aside": aside}
        | {"ready": prompts["ready"]},
        "completions": {
            "made": sum(completions.values()),
            "failed": sum(sum(count.get("failed", {}).values()) for count in made.values()),
        },
        "strategies": rows,
        "totals": totals,
        "sums": _sums(manifest, rows, totals),
    }


def _outcomes(strategy: str, outcomes: Mapping[tuple[str, str, str], int]) -> Json:
    mine = {(status, reason): n for (name, status, reason), n in outcomes.items() if name == strategy}
    by_status: Counter[str] = Counter()
    for (status, _), number in mine.items():
        by_status[status] += number
    reasons = [
        {"status": status, "reason": reason, "pairs": n}
        for (status, reason), n in sorted(mine.items(), key=lambda item: (-item[1], item[0]))
        if status != "kept"
    ]
    return {
        "strategy": strategy,
        **{status: by_status[status] for status in STATUSES},
        "pairs": by_status.total(),
        "reasons": reasons,
    }


def _sums(manifest: Json, rows: list[Json], totals: Json) -> list[Json]:
    """Each sum in words and whether it holds."""
    prompts = manifest["prompts"]
    aside = sum(prompts["set_aside"].values())
    ready, read = prompts["ready"], prompts["read"]
    # Strategies may make several pairs of each prompt: a whole number of them, the same for all prompts.
    short = [row["strategy"] for row in rows if not ready or row["pairs"] % ready or not row["pairs"]]
    said = manifest["pairs"]["strategies"]
    differing = [
        row["strategy"]
        for row in rows
        if {(s, r): n for s in STATUSES[1:] for r, n in said[row["strategy"]][s].items()}
        | {("kept", ""): said[row["strategy"]]["kept"]}
        != {(item["status"], item["reason"]): item["pairs"] for item in row["reasons"]} | {("kept", ""): row["kept"]}
    ]
    return [
        {
            "text": f"{read:,} read = {ready:,} ready + {prompts['duplicates']:,} duplicates + {aside:,} set aside",
            "holds": read == ready + prompts["duplicates"] + aside,
        },
        {
            "text": f"{totals['pairs']:,} pairs = {totals['kept']:,} kept + {totals['rejected']:,} rejected + "
            f"{totals['failed']:,} failed",
            "holds": totals["pairs"] == sum(totals[status] for status in STATUSES),
        },
        {
            "text": f"every strategy has a pair for each of the {ready:,} prompts"
            + (f"; not {', '.join(short)}" if short else ""),
            "holds": not short,
        },
        {
            "text": "counted in the Parquet = written in the manifest"
            + (f"; not for {', '.join(differing)}" if differing else ""),
            "holds": not differing,
        },
    ]


def measuring(run: Run) -> dict[str, str]:
    """The variants that judge or reward the pairs, by measure."""
    scores = run.order.recipe.scores
    named = {"judge": scores.judge, "reward": scores.reward} if scores else {}
    return {key: name for key, name in named.items() if name}


def accuracy(strategy: str, found: Survey) -> Json:
    """How often a measure agrees with the label, over all kept pairs and over those that are matched in length.

    A measure that no pair has a value of is None. Ties of the judge decide nothing and are counted apart.
    """
    cells = found.cells.get(strategy, Cells())
    every = found.scored.get(strategy, Counter())
    matched = Counter(cells.below(cells.matched())) if cells.sums else Counter()
    sides = {"raw": every, "matched": matched}
    out: Json = {"strategy": strategy, "margin": None, "judge": None, "reward": None}
    for measure in ("margin", "reward"):
        if every[f"{measure}_n"]:
            out[measure] = {k: share(c[f"{measure}_good"], c[f"{measure}_n"]) for k, c in sides.items()}
    if any(every[f"judge_{verdict}"] for verdict in VERDICTS):
        out["judge"] = {
            k: share(c["judge_chosen"], c["judge_chosen"] + c["judge_rejected"]) | {"ties": c["judge_tie"]}
            for k, c in sides.items()
        }
    return out


def share(good: int, n: int) -> Json:
    """A share with its Wilson 95 % interval; ``share`` is None of nothing."""
    low, high = wilson(good, n)
    return {"good": good, "n": n, "share": good / n if n else None, "low": low, "high": high}


def lengths(strategy: str, found: Survey, balance: Json | None) -> Json:
    """Token lengths of the kept pairs: all, matched in length, and what training takes of them."""
    cells = found.cells.get(strategy)
    if cells is None:
        return {"strategy": strategy, "all": None, "matched": None, "training": None, "quantiles": None}
    apart = found.differences[strategy]
    return {
        "strategy": strategy,
        "all": cells.lengths().as_json(),
        "matched": cells.lengths(cells.matched()).as_json(),
        "training": balance["strategies"].get(strategy) if balance else None,
        "quantiles": {f"p{p}": quantile(apart, p / 100) for p in (5, 50, 95)},
    }


def effort(manifest: Json) -> Json:
    """Tokens and time by variant; time is of all commands that have generated, failed and repeated work too."""
    made = manifest.get("generations", {}).get("by_variant", {})
    commands = manifest.get("effort", [])
    spent: Counter[str] = Counter()
    for command in commands:
        for name, count in command["by_variant"].items():
            spent[name] += count["seconds"]
    rows = []
    for name, count in made.items():
        seconds = spent[name] or count.get("seconds") or None
        rows.append(
            {
                "variant": name,
                "completions": count.get("completions", count.get("requests", 0)),
                "failed": sum(count.get("failed", {}).values()),
                "prompt_tokens": count["prompt_tokens"],
                "cached": count["cached_tokens"] / count["prompt_tokens"] if count["prompt_tokens"] else 0.0,
                "tokens": count["tokens"],
                "seconds": seconds,
                "rate": count["tokens"] / seconds if seconds else None,
            }
        )
    steps = {
        "generate": sum(command["seconds"] for command in commands) or manifest.get("generations", {}).get("seconds"),
        "pairs": manifest["pairs"].get("seconds"),
        "train": manifest.get("model", {}).get("seconds"),
    }
    faults = sum(len(command.get("faults", [])) for command in commands)
    return {"variants": rows, "steps": {k: v for k, v in steps.items() if v is not None}, "faults": faults}


def models(run: Run, manifest: Json) -> Json:
    """Who made the text, with what versions, and the checksums by which the data can be told."""
    variants = [
        {
            "variant": name,
            "model": v.model,
            # Of what a server serves no revision is known.
            "revision": "unknown (served)" if v.engine == "endpoint" else v.revision or "not pinned",
            "engine": v.engine,
            "strategies": [s.name for s in run.order.strategies if name in s.variants],
        }
        for name, v in run.order.recipe.variants.items()
    ]
    sums = [
        {"set": name, "checksum": manifest[name]["checksum"]}
        for name in FINGERPRINTS
        if "checksum" in manifest.get(name, {})
    ]
    return {"variants": variants, "versions": manifest.get("versions", {}), "checksums": sums}


def training(manifest: Json) -> Json | None:
    """What was trained and how it compares, if it was."""
    model = manifest.get("model")
    if not model:
        return None
    evaluation = manifest.get("evaluation", {})
    current = evaluation.get("model") == model["fingerprint"]
    return {
        "base": model["base"],
        "fingerprint": model["fingerprint"],
        "pairs": model["pairs"],
        "pairs_by_strategy": model["pairs_by_strategy"],
        "last": {k: model["last"][k] for k in ("step", "loss", "rewards/accuracies") if k in model.get("last", {})},
        "evaluation": evaluation["strategies"] if current else None,
    }
