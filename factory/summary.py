"""What the commands say at their end: plan, pairs by strategy with reasons, and what of a run is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table

from factory.cookbook import Order
from factory.generate import progress_of
from factory.plan import Plan
from factory.probe import Estimate, Predicted, Prediction
from factory.run import Run
from factory.terminal import Terminal, duration


def show_plan(terminal: Terminal, recipe: str, order: Order, plan: Plan, misfits: list[str]) -> None:
    """The plan of a recipe for a person."""
    facts = plan.as_json()
    count = f"{plan.num_prompts:,} prompts" if plan.num_prompts else "all prompts of the source"
    terminal.say(f"recipe {recipe}: preset {order.preset.name}, {len(order.strategies)} strategies, {count}")
    terminal.say(
        f"{facts['generations_per_prompt']:g} completions a prompt; sharing saves "
        f"{facts['saved_by_sharing_per_prompt']:g} more. Schedule: {plan.schedule}."
    )
    table = Table("pool", "model", "completions a prompt", "new tokens a prompt at most", "replicas", "each with")
    for stage in plan.stages:
        each = f"{stage.cpus:g} CPU" + (f", {stage.gpus:g} GPU" if stage.gpus else "")
        model = order.recipe.variants[stage.variant].model
        tokens = f"{stage.max_new_tokens:,.0f}"
        table.add_row(stage.variant, model, f"{stage.generations:g}", tokens, str(stage.replicas), each)
    terminal.console.print(table)
    if plan.train_workers:
        gpus = f", {plan.train_gpus} GPU" if plan.train_gpus else ""
        terminal.say(f"train: {plan.train_workers} workers with {plan.train_cpus} CPU{gpus} each")
    for text in misfits:
        terminal.say(f"does not fit this machine: {text}")


def show_prediction(terminal: Terminal, found: Prediction) -> None:
    """What a probe predicts, each figure with its interval."""
    terminal.say(f"by {found.probed:,} prompts, {found.prompts:,} prompts would take (95 % intervals):")
    table = Table("", *(f"{part.variant} x {part.replicas}" for part in found.variants))
    lines: list[tuple[str, Callable[[Predicted], str]]] = [
        ("completions", lambda part: f"{part.completions:,}"),
        ("prompt tokens", lambda part: _within(part.prompt_tokens, _amount)),
        ("new tokens", lambda part: _within(part.new_tokens, _amount)),
        ("time", lambda part: _within(part.seconds, duration)),
    ]
    if found.gpu_hours.value:
        lines.append(("GPU-hours", lambda part: _within(part.gpu_hours, _amount)))
    if found.cost is not None:
        lines.append(("cost", lambda part: _within(part.cost, _amount) if part.cost else ""))
    for name, text in lines:
        table.add_row(name, *(text(part) for part in found.variants))
    terminal.console.print(table)
    hours = f", {_range(found.gpu_hours, _amount)} GPU-hours" if found.gpu_hours.value else ", no GPU"
    cost = f", cost {_range(found.cost, _amount)}" if found.cost is not None and found.gpu_hours.value else ""
    terminal.say(f"in all: {_range(found.seconds, duration)}{hours}{cost}")
    few = [part for part in found.variants if part.in_flight < part.max_num_seqs]
    if few:
        which = ", ".join(f"{part.variant} {part.in_flight} of {part.max_num_seqs}" for part in few)
        terminal.say(f"requests at once in the probe: {which}; with a larger --probe it may turn out faster")


def _within(estimate: Estimate, written: Callable[[float], str]) -> str:
    """With half the width of the interval, in per cent."""
    half = (estimate.high - estimate.low) / 2 / estimate.value if estimate.value else 0
    return f"{written(estimate.value)} ± {half:.0%}" if half else written(estimate.value)


def _range(estimate: Estimate, written: Callable[[float], str]) -> str:
    return f"{written(estimate.value)} ({written(estimate.low)} to {written(estimate.high)})"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show_pairs(terminal: Terminal, run: Run) -> None:
    """The books of the pairs: one line per strategy, the reasons with their numbers."""
    pairs = run.manifest.get("pairs")
    if not pairs:
        return
    table = Table("strategy", "kept", "share", "rejected", "failed", "reasons")
    totals = [0, 0, 0]
    for strategy, outcomes in pairs["strategies"].items():
        counts = [outcomes["kept"], sum(outcomes["rejected"].values()), sum(outcomes["failed"].values())]
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
        reasons = ", ".join(f"{n} {reason}" for part in ("rejected", "failed") for reason, n in outcomes[part].items())
        table.add_row(strategy, *_counts(counts), reasons)
    table.add_section()
    table.add_row("all", *_counts(totals), f"{run.manifest['prompts']['ready']} prompts; the books balance")
    terminal.console.print(table)
    if "lengths" in pairs:  # a run of an older version has none
        _show_lengths(terminal, pairs)


def _show_lengths(terminal: Terminal, pairs: dict[str, Any]) -> None:
    """Lengths of the kept pairs, and what ``balance_length`` leaves of those of the training split."""
    balanced: dict[str, Any] = pairs["balance"]["strategies"] if "balance" in pairs else {}
    heads = ("training pairs", "d", "balanced", "d") if balanced else ()
    table = Table("kept pairs", "length d", "longer is chosen", *heads)
    for strategy, measured in pairs["lengths"].items():
        sides = balanced.get(strategy, {}).values()
        parts = [text for side in sides for text in (f"{side['pairs']:,}", _d(side))]
        table.add_row(strategy, _d(measured), f"{measured['longer_is_chosen']:.0%}", *parts)
    terminal.console.print(table)
    terminal.say("length d: Cohen's d of tokens, above 0 where chosen answers are longer; 0.2 is small, 0.8 large")
    for strategy, found in balanced.items():
        after, target = found["after"]["d"], pairs["balance"]["target"]
        if after is None or abs(after) > target:
            terminal.say(f"balance_length: {strategy}: no set of its pairs comes to {target:g}")


def _d(measured: dict[str, Any]) -> str:
    return "-" if measured["d"] is None else f"{measured['d']:+.2f}"


def _counts(counts: list[int]) -> list[str]:
    kept, rejected, failed = counts
    return [str(kept), f"{kept / max(1, sum(counts)):.0%}", str(rejected), str(failed)]


def show_summary(terminal: Terminal, run: Run) -> None:
    """What a run has, what is left of it, and what failed, with counts and times."""
    manifest = run.manifest
    prompts = manifest.get("prompts")
    if not prompts:
        terminal.say(f"{run.path}: nothing is done yet")
        return
    aside = "".join(f", {n:,} set aside ({reason})" for reason, n in prompts["set_aside"].items())
    terminal.say(f"prompts      {prompts['ready']:,} ready of {prompts['read']:,}{aside}")
    generations = manifest.get("generations", {})
    if generations.get("fingerprint") == run.order.fingerprint:
        terminal.say(f"generations  complete, {show_effort(manifest)}")
    else:
        _unfinished(terminal, run, prompts["ready"])
    for line in variant_lines(generations.get("by_variant", {})):
        terminal.say(f"             {line}")
    for variant, count in generations.get("by_variant", {}).items():
        for kind, number in count["failed"].items():
            terminal.say(f"             failed: {number:,} completions of {variant} ({kind})")
    for effort in manifest.get("effort", []):
        for fault in effort["faults"]:
            cost = f", cost {duration(fault['lost_s'])}" if fault.get("lost_s") is not None else ""
            terminal.say(f"             lost: a replica of {fault['variant']}, {fault['what']}{cost}")
    show_pairs(terminal, run)
    for name, show in (("model", _model), ("evaluation", _evaluation)):
        if manifest.get(name):
            show(terminal, run, manifest[name])


def _unfinished(terminal: Terminal, run: Run, ready: int) -> None:
    stored = progress_of(run)
    if stored:
        last = max(stored, key=int)
        done = "; ".join(f"{rows:,} of {ready:,} prompts have passed {n} variants" for n, rows in stored.items())
        terminal.say(f"generations  not complete: {done}; {ready - stored[last]:,} prompts are left after those")
    else:
        terminal.say("generations  not begun")
    terminal.say(f"             go on with: popalign generate {run.path}/recipe.yaml")


def show_effort(manifest: dict[str, Any]) -> str:
    """Completions, tokens and time of the generations."""
    variants = manifest["generations"]["by_variant"].values()
    tokens, completions = sum(v["tokens"] for v in variants), sum(v["completions"] for v in variants)
    seconds = sum(effort["seconds"] for effort in manifest["effort"])
    return f"{completions:,} completions, {tokens:,} new tokens in {duration(seconds)}"


def variant_lines(by_variant: dict[str, Any]) -> list[str]:
    """What each variant has made, and how much of its prompts the prefix cache saved."""
    return [
        f"{variant}: {count['completions']:,} completions, {count['prompt_tokens']:,} prompt tokens "
        f"({count['cached_tokens'] / max(1, count['prompt_tokens']):.0%} cache hits), {count['tokens']:,} new tokens"
        for variant, count in by_variant.items()
    ]


def _model(terminal: Terminal, run: Run, facts: dict[str, Any]) -> None:
    terminal.say(f"model        {run.path}/model")


def _evaluation(terminal: Terminal, run: Run, facts: dict[str, Any]) -> None:
    terminal.say(f"evaluation   {run.path}/evaluation")
