"""The commands of the factory: plan, generate, pairs, show, report, status, export, card. ``python -m factory`` joins
them with those of train."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Literal

import ray
import typer

from factory.card import card
from factory.cookbook import Order, built_in, check, order
from factory.errors import InputError, PopalignError, RunError, log, root_cause
from factory.export import export, push
from factory.format import FORMATS
from factory.generate import generate, progress_of
from factory.model import check_models, token_counter
from factory.pair import make_pairs
from factory.place import Place
from factory.plan import Node, make_plan, misfits, require_fit
from factory.probe import probe, sampled
from factory.prompt import Staged, check_sources, stage
from factory.report import write_report
from factory.run import Run, damaged
from factory.session import cluster_address, here, session
from factory.show import Wanted, find, require_known, show_rows
from factory.summary import show_pairs, show_plan, show_prediction, show_summary, variant_lines
from factory.terminal import Terminal
from factory.watch import Limits

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}

RecipeName = Annotated[str, typer.Argument(help=f"A built-in recipe ({', '.join(built_in())}) or a YAML file.")]
RunPath = Annotated[str, typer.Argument(help="A run directory, as `popalign generate` has made it.")]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe, such as prompts.limit=64."),
]
Decontaminate = Annotated[
    list[str],
    typer.Option(
        metavar="FILE",
        help="Set aside prompts that overlap this evaluation set (as prompts.source takes it). May be given several "
        "times; takes the place of the recipe's prompts.decontaminate.",
    ),
]
Cpus = Annotated[
    int | None,
    typer.Option(help="Logical CPUs of the Ray that is started when RAY_ADDRESS names no cluster; default: all cores."),
]
MaxHours = Annotated[
    float | None,
    typer.Option(min=0.0, help="Stop cleanly after so many hours of generating; the same command goes on from there."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program instead of text.")]


def add_to(app: typer.Typer) -> None:
    """Register the factory's commands."""
    app.command("plan")(plan_command)
    app.command("generate")(generate_command)
    app.command("pairs")(pairs_command)
    app.command("show")(show_command)
    app.command("report")(report_command)
    app.command("status")(status_command)
    app.command("export")(export_command)
    app.command("card")(card_command)


def plan_command(
    recipe: RecipeName,
    set_: Overrides = [],  # noqa: B006
    decontaminate: Decontaminate = [],  # noqa: B006
    cpus: Cpus = None,
    probe: Annotated[
        int | None,
        typer.Option(min=1, help="Generate for so many prompts, drawn at random, and predict tokens, time and cost."),
    ] = None,
    price: Annotated[float | None, typer.Option(min=0.0, help="Of a GPU-hour, for the cost; with --probe.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a recipe will do: completions per prompt, pools, resources, schedule. Needs no GPU and no model, except
    with --probe, which starts the engines where `generate` would."""
    wanted = ordered(recipe, set_, decontaminate)
    if probe is not None:
        _probe(wanted, probe, price, cpus, as_json)
        return
    if price is not None:
        raise InputError("--price: nothing is measured without --probe N")
    nodes = here(cpus)
    plan = make_plan(wanted, nodes)
    problems = misfits(plan, nodes)
    terminal = Terminal()
    if as_json:
        facts = {"recipe": recipe, **plan.as_json(), "fits": not problems, "misfits": problems}
        terminal.say(json.dumps(facts, indent=2))
        return
    show_plan(terminal, recipe, wanted, plan, problems)


def _probe(wanted: Order, number: int, price: float | None, cpus: int | None, as_json: bool) -> None:
    out, terminal = Terminal(), Terminal(quiet=as_json)
    check_sources(wanted.recipe.prompts)
    with sampled(wanted, number) as (own, count), started(own, terminal, cpus=cpus, training=False) as (run, nodes):
        plan = make_plan(wanted, nodes, num_prompts=count)
        require_fit(plan, nodes, training=False)
        found = probe(run, plan, count, price, terminal.progress)
    if as_json:
        out.say(json.dumps(asdict(found), indent=2))
    else:
        show_prediction(out, found)


def generate_command(
    recipe: RecipeName,
    set_: Overrides = [],  # noqa: B006
    decontaminate: Decontaminate = [],  # noqa: B006
    cpus: Cpus = None,
    max_hours: MaxHours = None,
) -> None:
    """Make every completion that a recipe asks for. Run it again after a crash: what is stored is not made again."""
    wanted = ordered(recipe, set_, decontaminate)
    limits = limits_of(wanted, max_hours)
    terminal = Terminal()
    with started(wanted, terminal, cpus=cpus, training=False) as (run, nodes):
        generate_step(run, nodes, terminal, limits)
        terminal.say(f"next: popalign pairs {run.path}")


def pairs_command(
    run: RunPath,
    set_: Annotated[
        list[str],
        typer.Option("--set", metavar="checks.KEY=VALUE", help="Change a check of the run's recipe, for good."),
    ] = [],  # noqa: B006
    cpus: Cpus = None,
) -> None:
    """Make the pairs of a run from its generations. Cheap and repeatable; no engine starts."""
    opened = Run.open(run)
    opened = opened.rechecked(set_) if set_ else opened
    terminal = Terminal()
    with at_work(opened, terminal, cpus=cpus):
        if set_:
            opened.store_recipe()
        pairs_step(opened, terminal)
    show_pairs(terminal, opened)


def show_command(
    run: RunPath,
    strategy: Annotated[str | None, typer.Option(help="Only pairs of this strategy.")] = None,
    status: Annotated[
        Literal["kept", "rejected", "failed"] | None, typer.Option(help="Only pairs of this status.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Only pairs rejected or failed for this reason.")] = None,
    text: Annotated[str | None, typer.Option(help="Only pairs with this text in prompt or answers.")] = None,
    id_: Annotated[str | None, typer.Option("--id", help="The pair of this id, or of ids that begin so.")] = None,
    number: Annotated[int, typer.Option(min=1, help="So many pairs at most.")] = 5,
    offset: Annotated[int, typer.Option(min=0, help="Pass over the first so many.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Draw at random; default: in the order of the files.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show pairs of a run: prompt, chosen and rejected answer, and why a pair was rejected."""
    opened = Run.open(run)
    pairs = opened.current("pairs", f"pairs {opened.path}")
    wanted = Wanted(strategy, status, reason, id_, text)
    require_known(opened, wanted)
    terminal = Terminal()
    with translated(opened):
        rows = find(pairs, wanted, number, offset=offset, seed=seed)
    if as_json:  # one line each; ASCII, so that no character of an answer reaches the terminal as it is
        for row in rows:
            terminal.say(json.dumps(row))
        return
    show_rows(terminal, rows, offset)
    if not rows:
        terminal.say("no pair matches")


def report_command(run: RunPath) -> None:
    """Write report.html into the run: its figures and a viewer of its pairs, in one file that needs no network."""
    opened = Run.open(run)
    with translated(opened):
        report_step(opened, Terminal())


def status_command(
    run: RunPath,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every stored file with its checksum.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what of a run is done, what is left, what failed and why."""
    opened = Run.open(run)
    terminal = Terminal()
    bad = damaged(opened) if verify else []
    if as_json:
        facts = {**opened.manifest, "progress": progress_of(opened), **({"damaged": bad} if verify else {})}
        terminal.say(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        show_summary(terminal, opened)
    if bad:
        raise RunError(f"{len(bad)} of the stored files are damaged: {'; '.join(bad[:5])}; restore them from a copy")
    if verify and not as_json:
        terminal.say("checksums    all stored files are as they were written")


def export_command(
    run: RunPath,
    to: Annotated[str, typer.Option(help=f"The format: {', '.join(FORMATS)}.")],
    out: Annotated[str | None, typer.Option(help="A folder to write to; default: RUN/exports/FORMAT.")] = None,
    split: Annotated[str, typer.Option(help="train, heldout, or all, a file for each.")] = "all",
    push_: Annotated[
        str | None, typer.Option("--push", metavar="NAME", help="Upload it to the Hugging Face hub, private.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: everybody may read it.")] = False,
) -> None:
    """Write the kept pairs in the format of another trainer, with a data set card."""
    if public and push_ is None:
        raise InputError("--public: nothing is uploaded without --push NAME")
    opened = Run.open(run)
    terminal = Terminal()
    with opened.locked():
        place = None if out is None else Place.of(out)
        found = export(opened, to, out=place, split=split, describe=lambda made: card(opened, made))
    rows = ", ".join(f"{file.rows:,} rows in {file.name}" for file in found.files)
    terminal.say(f"export: {found.pairs:,} kept pairs as {to}: {rows}, in {found.folder}")
    if push_ is not None:
        terminal.say(f"pushed: {push(found, push_, public=public)}")


def card_command(run: RunPath) -> None:
    """Write RUN/card.md: the data set card, in the Hugging Face form."""
    opened = Run.open(run)
    (opened.path / "card.md").write(card(opened).encode())
    Terminal().say(f"card: {opened.path}/card.md; read what it says of licences before you publish anything")


def ordered(recipe: str, overrides: list[str], decontaminate: list[str]) -> Order:
    """The checked order of a command's arguments."""
    files = [f"prompts.decontaminate={json.dumps(decontaminate)}"] if decontaminate else []
    return order(recipe, [*overrides, *files])


def limits_of(wanted: Order, max_hours: float | None) -> Limits:
    """The limits of a command, its budget counted from now."""
    until = None if max_hours is None else time.monotonic() + 3600 * max_hours
    return Limits(max_failure_rate=wanted.recipe.max_failure_rate, until=until, hours=max_hours)


@contextmanager
def started(wanted: Order, terminal: Terminal, *, cpus: int | None, training: bool) -> Iterator[tuple[Run, list[Node]]]:
    """Check everything, connect to Ray, then make the run directory and stage the prompts: in this order, so that a
    mistake leaves nothing behind and what cannot fit is said within seconds."""
    if cluster_address() is None:
        require_fit(make_plan(wanted, here(cpus)), here(cpus), training=training)
    check_sources(wanted.recipe.prompts)
    check_models(wanted)
    logs = Run(Place.of(wanted.recipe.run), wanted).logs
    with session(logs, cpus=cpus) as nodes:
        require_fit(make_plan(wanted, nodes), nodes, training=training)
        run = Run.create(wanted)
        with run.locked(), translated(run):
            terminal.redirect(run.logs / "popalign.log")
            if "prompts" not in run.manifest:
                stage_step(run, terminal)
            yield run, nodes


@contextmanager
def at_work(run: Run, terminal: Terminal, *, cpus: int | None) -> Iterator[list[Node]]:
    """Connect to Ray for work on a run that exists."""
    with run.locked():
        terminal.redirect(run.logs / "popalign.log")
        with session(run.logs, cpus=cpus) as nodes, translated(run):
            yield nodes


@contextmanager
def translated(run: Run) -> Iterator[None]:
    """The one place where failures of Ray and of the disk become an error of ours, in one line."""
    try:
        yield
    except (ray.exceptions.RayError, OSError) as error:
        cause = root_cause(error)
        if isinstance(cause, PopalignError):
            raise cause from error
        log(error)
        what = " ".join(str(cause).split())[:300] or type(cause).__name__
        if isinstance(cause, OSError) and (cause.errno in NO_ROOM or "No space left" in str(cause)):
            raise InputError(
                f"run: cannot write {run.path}: {cause.strerror or cause}; what is stored is kept, and the same "
                "command goes on from there"
            ) from error
        raise RunError(
            f"{type(cause).__name__}: {what}; what is stored is kept, and the same command goes on from there; "
            f"logs: {run.logs}"
        ) from error


def stage_step(run: Run, terminal: Terminal) -> None:
    """Stage the prompts of a new run."""
    folder = run.begin("prompts")
    try:
        with terminal.progress("prompts", run.order.recipe.prompts.limit, "prompts") as meter:
            staged, written = stage(
                run.order.recipe.prompts,
                folder,
                count_tokens=token_counter(run.order),
                metadata=run.metadata,
                labelled="label" in run.order.recipe.strategies,
                progress=meter.update,
            )
    except (InputError, OSError):
        run.discard()
        raise
    run.switch("prompts", folder, written, **staged.summary())
    terminal.say(_staged(staged, folder))


def generate_step(run: Run, nodes: list[Node], terminal: Terminal, limits: Limits) -> None:
    """Generate, with progress."""
    made = run.manifest.get("generations", {}).get("recipe")
    before = check(made, f"{run.path}/manifest.json") if made else None
    plan = make_plan(run.order, nodes, num_prompts=run.manifest["prompts"]["ready"], made=before)
    facts = generate(run, plan, terminal.progress, limits)
    tokens = sum(variant["tokens"] for variant in facts["by_variant"].values())
    terminal.say(f"generations: {facts['prompts']:,} prompts complete, {tokens:,} new tokens in {run.path}/generations")
    for line in variant_lines(facts["by_variant"]):
        terminal.say(f"  {line}")


def pairs_step(run: Run, terminal: Terminal) -> None:
    """Make pairs, with progress."""
    make_pairs(run, terminal.progress)


def report_step(run: Run, terminal: Terminal) -> None:
    """Write the report, with progress."""
    with terminal.progress("report", run.manifest.get("pairs", {}).get("shards"), "shards") as meter:
        place = write_report(run, meter.update)
    terminal.say(f"report: {place}")


def _staged(staged: Staged, folder: Place) -> str:
    aside = "".join(f", {number} set aside ({reason})" for reason, number in staged.set_aside.items())
    doubles = f", {staged.duplicates} duplicates dropped" if staged.duplicates else ""
    where = f" (listed in {folder}/set_aside.jsonl)" if aside else ""
    return f"prompts: {staged.read:,} read, {staged.ready:,} ready{doubles}{aside}{where}"
