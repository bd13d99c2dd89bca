"""What training and evaluation say at their end."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table

from factory.run import Run
from factory.summary import show_effort
from factory.terminal import Terminal, duration


def show_evaluation(terminal: Terminal, run: Run) -> None:
    """Accuracy and margin per strategy on the held-out pairs, before against after, and the sample answers."""
    path = run.path / "evaluation" / "evaluation.json"
    if not run.manifest.get("evaluation") or not path.is_file():
        return
    result = json.loads(path.read())
    table = Table("held-out pairs", "n", "prefers chosen before", "after", "reward accuracy", "reward margin")
    for name, row in result["strategies"].items():
        if name == "all":
            table.add_section()
        before, after = row["before"], row["after"]
        table.add_row(
            name,
            str(row["n"]),
            _share(before["accuracy"]),
            _share(after["accuracy"]),
            _share(after["reward_accuracy"]),
            f"{after['reward_margin']:+.3f}",
        )
    terminal.console.print(table)
    terminal.say("prefers chosen: log p(chosen) > log p(rejected). Reward: beta x the change of log p by training.")
    for sample in result["samples"]:
        terminal.say(f"\nprompt: {_line(sample['prompt'][-1]['content'])}")
        terminal.say(f"  before: {_line(sample['before'])}")
        terminal.say(f"  after:  {_line(sample['after'])}")


def show_places(terminal: Terminal, run: Run) -> None:
    """Time, tokens, and where everything of a run lies."""
    manifest = run.manifest
    terminal.say("")
    if manifest.get("generations"):
        terminal.say(f"generations  {show_effort(manifest)}")
    if manifest.get("model"):
        model = manifest["model"]
        terminal.say(f"training     {model['pairs']} pairs in {duration(model['seconds'])}")
    for name, what in (("pairs", "Parquet, for any DPO trainer"), ("model", "load it with transformers or vLLM")):
        if manifest.get(name):
            folder = run.current("pairs", "pairs") if name == "pairs" else run.path / name
            terminal.say(f"{name:<12} {folder}  ({what})")
    terminal.say(
        f"report       {run.path}/report.html  (open it in a browser: figures, and all or a sample of the pairs)"
    )
    terminal.say(f"all figures  {run.path}/manifest.json")


def _share(value: dict[str, Any]) -> str:
    return f"{value['value']:.0%} ({value['low']:.0%} to {value['high']:.0%})"


def _line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 240 else f"{flat[:237]}..."
