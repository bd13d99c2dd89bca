"""The commands of train: train, evaluate, and run, which does everything from prompts to an aligned model."""

from __future__ import annotations

import typer

from factory.command import (
    Cpus,
    Decontaminate,
    MaxHours,
    Overrides,
    RecipeName,
    RunPath,
    at_work,
    generate_step,
    limits_of,
    ordered,
    pairs_step,
    report_step,
    started,
)
from factory.errors import InputError
from factory.plan import make_plan, require_fit
from factory.run import Run
from factory.summary import show_pairs
from factory.terminal import Terminal
from train.summary import show_evaluation, show_places


def add_to(app: typer.Typer) -> None:
    """Register train's commands."""
    app.command("train")(train_command)
    app.command("evaluate")(evaluate_command)
    app.command("run")(run_command)


def train_command(run: RunPath, cpus: Cpus = None) -> None:
    """Train the recipe's model on the kept pairs of a run with DPO. Goes on from its last checkpoint."""
    opened = Run.open(run)
    require_training(opened)
    terminal = Terminal()
    with at_work(opened, terminal, cpus=cpus) as nodes:
        require_fit(make_plan(opened.order, nodes), nodes, generating=False)
        train_step(opened, terminal)
        terminal.say(f"model: {opened.path}/model; next: popalign evaluate {opened.path}")


def evaluate_command(run: RunPath, cpus: Cpus = None) -> None:
    """Compare the model before and after on the held-out prompts: reward accuracy and margin per strategy, samples."""
    opened = Run.open(run)
    require_training(opened)
    terminal = Terminal()
    with at_work(opened, terminal, cpus=cpus):
        evaluate_step(opened, terminal)
    show_evaluation(terminal, opened)


def run_command(
    recipe: RecipeName,
    set_: Overrides = [],  # noqa: B006
    decontaminate: Decontaminate = [],  # noqa: B006
    cpus: Cpus = None,
    max_hours: MaxHours = None,
) -> None:
    """From prompts to an aligned model: generate, pairs, train, evaluate. Run it again to go on after a stop."""
    wanted = ordered(recipe, set_, decontaminate)
    limits = limits_of(wanted, max_hours)
    terminal = Terminal()
    with started(wanted, terminal, cpus=cpus, training=True) as (run, nodes):
        terminal.say(f"run {run.path}: log of libraries in {run.logs}")
        generate_step(run, nodes, terminal, limits)
        pairs_step(run, terminal)
        if wanted.recipe.train is None:
            terminal.say("the recipe has no train section: stopping at the pairs")
        else:
            train_step(run, terminal)
            evaluate_step(run, terminal)
        report_step(run, terminal)
    show_pairs(terminal, run)
    show_evaluation(terminal, run)
    show_places(terminal, run)


def require_training(run: Run) -> None:
    """Refuse a run whose recipe does not train.

    Raises:
        InputError: saying what to add.
    """
    if run.order.recipe.train is None:
        raise InputError(f"{run.path}/recipe.yaml: no train section; add one (see the recipe 'demo')")


def train_step(run: Run, terminal: Terminal) -> None:
    """Train, with progress."""
    from train.dpo import train  # Ray Train takes seconds to import; --help and plan do without

    train(run, terminal.progress)


def evaluate_step(run: Run, terminal: Terminal) -> None:
    """Evaluate, with progress."""
    from train.evaluate import evaluate

    evaluate(run, terminal.progress)
