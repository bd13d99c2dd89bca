"""The training of a run, seen from the driver: what is trained on, when it is done, how far it is."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.data import DataContext
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from factory.errors import RunError
from factory.generate import Progress
from factory.model import resolve
from factory.run import Run
from factory.terminal import Meter
from train.pairs import Selection, select, shares
from train.worker import loop


def train(run: Run, progress: Progress) -> dict[str, Any]:
    """Align the recipe's model on the kept pairs with DPO; the model is a Hugging Face folder, ``<run>/model``.

    A training that is finished is not repeated, one that was interrupted goes on from its last checkpoint, and a
    changed train section or other pairs train anew.

    Raises:
        InputError: there are no pairs to train on.
        RunError: the workers failed.
    """
    settings = run.order.recipe.train
    assert settings is not None, "the command checks that there is a train section"
    identity = fingerprint(run)
    if run.manifest.get("model", {}).get("fingerprint") == identity and (run.path / "model" / "config.json").is_file():
        return dict(run.manifest["model"])
    started = time.monotonic()
    work = run.scratch / "checkpoints" / identity
    selection = select(run, work / "pairs.arrow", settings.workers * settings.micro_batch_size)
    target = work / "model"
    shutil.rmtree(target, ignore_errors=True)
    _fit(run, work, selection, target, progress)
    if not (target / "config.json").is_file():
        raise RunError(f"training ended without a model; logs: {run.logs}/train-*.log")
    model = run.path / "model"
    model.remove()
    if model.disk is not None:
        target.rename(model.disk)
    else:
        model.upload(target)
    facts = {
        "fingerprint": identity,
        "base": run.order.recipe.variants[settings.variant].model,
        "pairs": selection.num_pairs,
        "pairs_by_strategy": selection.by_strategy,
        "seconds": round(time.monotonic() - started, 2),
        "last": _last_metrics(run.logs / "train.jsonl"),
    }
    run.update(model=facts)
    shutil.rmtree(run.scratch / "checkpoints")
    return facts


def fingerprint(run: Run) -> str:
    """Identity of a training: the pairs, the settings that change the result, the base model and the seed."""
    recipe = run.order.recipe
    assert recipe.train is not None
    settings = recipe.train.model_dump(exclude={"save_steps", "max_failures", "gradient_checkpointing"})
    base = recipe.variants[recipe.train.variant]
    pairs = run.manifest.get("pairs", {}).get("checksum")
    content = [settings, base.model, base.revision, recipe.seed, shares(run), recipe.balance_length, pairs]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _fit(run: Run, work: Path, selection: Selection, target: Path, progress: Progress) -> None:
    recipe = run.order.recipe
    settings = recipe.train
    assert settings is not None
    base = recipe.variants[settings.variant]
    resources = {"CPU": settings.cpus_per_worker, **({"GPU": 1} if settings.gpus_per_worker else {})}
    # Ray Train copies the driver's context: a job-level checkpoint there would filter training rows.
    DataContext.get_current().checkpoint_config = None
    metrics = run.logs / "train.jsonl"
    metrics.unlink(missing_ok=True)
    trainer = TorchTrainer(
        loop,
        train_loop_config={
            "train": settings.model_dump(),
            "model": resolve(base),
            "revision": base.revision,
            "trust_remote_code": base.trust_remote_code,
            "seed": recipe.seed,
            "pairs": str(selection.path),
            "checkpoints": str(work),
            "target": str(target),
            "logs": str(run.logs),
        },
        scaling_config=ScalingConfig(
            num_workers=settings.workers, use_gpu=bool(settings.gpus_per_worker), resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(work),
            failure_config=FailureConfig(max_failures=settings.max_failures),
        ),
    )
    rows = selection.num_pairs + selection.num_fillers
    steps = settings.epochs * -(-rows // settings.batch_size)
    title = f"train {settings.variant} on {selection.num_pairs} pairs"
    with progress(title, steps, "steps") as meter, _watching(metrics, meter):
        trainer.fit()
        meter.update(steps, _said(_last_metrics(metrics)))


@contextmanager
def _watching(metrics: Path, meter: Meter) -> Iterator[None]:
    """Keep the meter up to date from the first worker's log, once a second."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1.0):
            row = _last_metrics(metrics)
            meter.update(row.get("step", 0), _said(row))

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _last_metrics(path: Path) -> dict[str, Any]:
    """The last line that speaks of a step's loss."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return next((row for row in reversed(rows) if "loss" in row), {})


def _said(row: dict[str, Any]) -> str:
    if not row:
        return "loading"
    return f"loss {row['loss']:.4f}, reward accuracy {row.get('rewards/accuracies', 0):.2f}"
