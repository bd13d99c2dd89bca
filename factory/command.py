"""The commands of the factory: plan, generate, pairs, status. ``python -m factory`` joins them with those of train."""

from __future__ import annotations

import errno
import json
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import ray
import typer

from factory.cookbook import Order, built_in, order
from factory.errors import InputError, PopalignError, RunError
from factory.generate import generate
from factory.model import check_models, token_counter
from factory.pair import make_pairs
from factory.plan import Node, Plan, make_plan, misfits, require_fit
from factory.prompt import Staged, check_sources, stage
from factory.run import Run
from factory.session import cluster_address, here, session
from factory.summary import show_pairs, show_plan, show_summary
from factory.terminal import Terminal

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}

RecipeName = Annotated[str, typer.Argument(help=f"A built-in recipe ({', '.join(built_in())}) or a YAML file.")]
RunPath = Annotated[Path, typer.Argument(help="A run directory, as `popalign generate` has made it.")]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe, such as prompts.limit=64."),
]
Cpus = Annotated[
    int | None,
    typer.Option(help="Logical CPUs of the Ray that is started when RAY_ADDRESS names no cluster; default: all cores."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program instead of text.")]


def add_to(app: typer.Typer) -> None:
    """Register the factory's commands."""
    app.command("plan")(plan_command)
    app.command("generate")(generate_command)
    app.command("pairs")(pairs_command)
    app.command("status")(status_command)


def plan_command(recipe: RecipeName, set_: Overrides = [], cpus: Cpus = None, as_json: AsJson = False) -> None:  # noqa: B006
    """Show what a recipe will do: completions per prompt, pools, resources, schedule. Needs no GPU and no model."""
    wanted = order(recipe, set_)
    nodes = here(cpus)
    plan = make_plan(wanted, nodes)
    problems = misfits(plan, nodes)
    terminal = Terminal()
    if as_json:
        facts = {"recipe": recipe, **plan.as_json(), "fits": not problems, "misfits": problems}
        terminal.say(json.dumps(facts, indent=2))
        return
    show_plan(terminal, recipe, wanted, plan, problems)


def generate_command(recipe: RecipeName, set_: Overrides = [], cpus: Cpus = None) -> None:  # noqa: B006
    """Make every completion that a recipe asks for. Run it again after a crash: what is stored is not made again."""
    wanted = order(recipe, set_)
    terminal = Terminal()
    with started(wanted, terminal, cpus=cpus, training=False) as (run, plan):
        generate_step(run, plan, terminal)
        terminal.say(f"next: popalign pairs {run.path}")


def pairs_command(run: RunPath, cpus: Cpus = None) -> None:
    """Make the pairs of a run from its generations. Cheap and repeatable; no engine starts."""
    opened = Run.open(run)
    terminal = Terminal()
    with at_work(opened, terminal, cpus=cpus):
        pairs_step(opened, terminal)
    show_pairs(terminal, opened)


def status_command(run: RunPath, as_json: AsJson = False) -> None:
    """Say what of a run is done: prompts, generations, pairs with reasons, model."""
    opened = Run.open(run)
    terminal = Terminal()
    if as_json:
        terminal.say(json.dumps(opened.manifest, indent=2, ensure_ascii=False))
        return
    show_summary(terminal, opened)


@contextmanager
def started(wanted: Order, terminal: Terminal, *, cpus: int | None, training: bool) -> Iterator[tuple[Run, Plan]]:
    """Check everything, connect to Ray, then make the run directory and stage the prompts: in this order, so that a
    mistake leaves nothing behind and what cannot fit is said within seconds."""
    if cluster_address() is None:
        require_fit(make_plan(wanted, here(cpus)), here(cpus), training=training)
    check_sources(wanted.recipe.prompts)
    check_models(wanted)
    logs = Path(wanted.recipe.run).absolute() / "logs"
    with session(logs, cpus=cpus) as nodes:
        plan = make_plan(wanted, nodes)
        require_fit(plan, nodes, training=training)
        run = Run.create(wanted)
        terminal.redirect(run.logs / "popalign.log")
        with translated(run):
            if "prompts" not in run.manifest:
                stage_step(run, terminal)
            yield run, plan


@contextmanager
def at_work(run: Run, terminal: Terminal, *, cpus: int | None) -> Iterator[list[Node]]:
    """Connect to Ray for work on a run that exists."""
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
        traceback.print_exception(error)  # to the log
        what = " ".join(str(cause).split())[:300] or type(cause).__name__
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            raise InputError(f"run: cannot write {run.path}: {cause.strerror}; what is stored is kept") from error
        raise RunError(
            f"{type(cause).__name__}: {what}; what is stored is kept, and the same command goes on from there; "
            f"logs: {run.logs}"
        ) from error


def root_cause(error: BaseException) -> BaseException:
    """The error that a worker raised, under what Ray wraps around it."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        error = getattr(error, "cause", None) or error.__cause__ or error
    return error


def stage_step(run: Run, terminal: Terminal) -> None:
    """Stage the prompts of a new run."""
    target = run.path / "prompts"
    shutil.rmtree(target, ignore_errors=True)  # staged before, but the manifest was never written
    settings = run.order.recipe.prompts
    try:
        staged = stage(
            settings,
            target,
            count_tokens=token_counter(run.order),
            metadata=run.metadata,
            rows_per_group=run.order.recipe.rows_per_task,
        )
    except (InputError, OSError):
        run.discard()
        raise
    run.update(prompts={"set": ".", **staged.summary()})
    terminal.say(_staged(staged))


def generate_step(run: Run, plan: Plan, terminal: Terminal) -> None:
    """Generate, with progress."""
    facts = generate(run, plan, terminal.progress)
    tokens = sum(variant["tokens"] for variant in facts["by_variant"].values())
    terminal.say(f"generations: {facts['prompts']} prompts complete, {tokens:,} new tokens in {run.path}/generations")


def pairs_step(run: Run, terminal: Terminal) -> None:
    """Make pairs, with progress."""
    make_pairs(run, terminal.progress)


def _staged(staged: Staged) -> str:
    aside = "".join(f", {number} set aside ({reason})" for reason, number in staged.set_aside.items())
    doubles = f", {staged.duplicates} duplicates dropped" if staged.duplicates else ""
    where = " (listed in prompts/set_aside.jsonl)" if aside else ""
    return f"prompts: {staged.read} read, {staged.ready} ready{doubles}{aside}{where}"
