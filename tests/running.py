"""Running the command line in tests, over recipes for the scripted engine, and reading what it has stored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from factory.run import Run
from factory.shard import shards

ROOT = Path(__file__).resolve().parent.parent
SIX: dict[str, Any] = {
    "prefix": {"variant": "strong"},
    "demon": {"variant": "strong"},
    "elicitive": {"variant": "strong"},
    "nparam": {"chosen": "strong", "rejected": "small"},
    "leaderboard": {"ladder": ["strong", "second"]},
    "refine": {"variant": "strong"},
}
# A conversation with a system turn, other scripts, and a character that ends a line for some readers.
TURNS = [
    {"role": "system", "content": "Be brief.\u2028Be kind."},
    {"role": "user", "content": "Guten Tag, 你好"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And now?"},
]


def popalign(*arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "factory", *arguments],
        cwd=ROOT,
        env=variables(environment),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def begin(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a command, in a session of its own as a shell would."""
    return subprocess.Popen(
        [sys.executable, "-m", "factory", *arguments],
        cwd=ROOT,
        env=variables(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def variables(more: dict[str, str]) -> dict[str, str]:
    """Our own environment without a cluster that somebody has started, and more."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | more


def stored(run: Path, passed: int = 1) -> int:
    """Rows of the set that has passed so many variants, of a run that is not complete."""
    files = list((run / "progress").glob(f"*/{passed}/*.parquet"))
    return sum(pq.read_metadata(file).num_rows for file in files)


def until(reached: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: float = 120) -> None:
    """Wait for something while a process goes on."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "it did not happen in time"
        assert process is None or process.poll() is None, process.communicate()[1]
        time.sleep(0.1)


def scripted(folder: Path, num_prompts: int, *, extra: list[Any] | None = None, **keys: Any) -> Path:
    """A recipe for the scripted engine over made-up prompts, and the file of these prompts."""
    prompts = [f"Tell me about subject {i}." for i in range(num_prompts)] + (extra or [])
    source = folder / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    recipe = folder / "recipe.yaml"
    content = {
        "run": str(folder / "run"),
        "prompts": {"source": str(source)},
        "variants": {name: {"engine": "scripted"} for name in ("strong", "small", "second")},
        "strategies": SIX,
        **keys,
    }
    recipe.write_text(yaml.safe_dump(content))
    return recipe


def generations(run: Path | str) -> list[dict[str, Any]]:
    opened = Run.open(run)
    files = shards(opened.current("generations", "generate"))
    return [row for place in files for row in pq.read_table(place.opened()).to_pylist()]


def identities(run: Path | str) -> dict[str, list[tuple[str, int]]]:
    """What was asked for each prompt: (generation id, seed) in order of the id."""
    return {
        row["prompt_id"]: sorted((c["generation_id"], c["seed"]) for c in row["completions"])
        for row in generations(run)
    }
