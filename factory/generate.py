"""Generate: every completion that the recipe asks for, made once, stored, and counted."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from factory.board import Board, Totals
from factory.errors import RunError
from factory.model import resolve
from factory.plan import Plan, Stage
from factory.pool import Pool
from factory.run import Run
from factory.shard import GENERATION, ShardSink, shards
from factory.source import SliceSource, finished_ids
from factory.terminal import Meter

# Requests that wait at an engine, as a multiple of the sequences it decodes at once: it never runs dry, and rows
# are finished (and stored) one after another instead of all at the end.
REQUESTS_AHEAD = 1.5
# A finished shard is work that a crash cannot take away; more rows in one are fewer files.
MAX_ROWS_PER_SHARD = 1024
SHARDS_WANTED = 64

# (title, total, unit) -> something to tell how far it is; see factory.terminal
Progress = Callable[[str, float | None, str], AbstractContextManager[Meter]]


def generate(run: Run, plan: Plan, progress: Progress) -> dict[str, Any]:
    """Make the run's generations, or what is missing of them, and say in the manifest that they are complete.

    Raises:
        RunError: rows are missing or repeated at the end; the run directory keeps what is done.
    """
    started = time.monotonic()
    prompts = run.current("prompts", "generate RECIPE")
    final = run.path / "generations" / run.order.fingerprint
    board = Board.remote()
    _quiet_ray_data()
    if plan.schedule == "streaming":
        _step(run, plan.stages, shards(prompts), final, board, progress)
    else:
        source = shards(prompts)
        for number, stage in enumerate(plan.stages):
            last = number == len(plan.stages) - 1
            target = final if last else run.path / "stages" / f"{number}-{stage.variant}"
            if not _complete(run, final):
                _step(run, (stage,), source, target, board, progress)
                source = shards(target)
    facts = _books(run, final)
    totals = ray.get(board.totals.remote())
    seconds = time.monotonic() - started
    run.switch("generations", final, **facts, **_effort(run, totals, seconds))
    shutil.rmtree(run.path / "stages", ignore_errors=True)
    return dict(run.manifest["generations"])


def _effort(run: Run, totals: dict[str, Totals], seconds: float) -> dict[str, Any]:
    """Seconds and counts of this command added to those of earlier ones that were interrupted or topped up."""
    before = run.manifest.get("generations", {})
    return {
        "seconds": round(seconds + before.get("seconds", 0.0), 2),
        "by_variant": {name: asdict(total) for name, total in totals.items()} or before.get("by_variant", {}),
    }


def _complete(run: Run, final: Path) -> bool:
    return len(_finished(final)) >= run.manifest["prompts"]["ready"]


def _step(
    run: Run, stages: tuple[Stage, ...], source: list[Path], target: Path, board: Any, progress: Progress
) -> None:
    """Stream the rows that ``target`` does not hold yet through the pools of some stages into its shards."""
    target.mkdir(parents=True, exist_ok=True)
    finished = _finished(target)
    num_ready = run.manifest["prompts"]["ready"]
    if len(finished) >= num_ready:
        return
    rows_per_task = run.order.recipe.rows_per_task
    reading = SliceSource(source, rows_per_task=rows_per_task, done=ray.put(finished))
    rows_per_shard = min(MAX_ROWS_PER_SHARD, rows_per_task * max(1, reading.num_slices // SHARDS_WANTED))
    data = ray.data.read_datasource(reading, num_cpus=0, override_num_blocks=max(1, reading.num_slices))
    for stage in stages:
        data = _pool(data, run, stage, board)
    sink = ShardSink(
        target,
        schema=GENERATION,
        key="prompt_id",
        metadata=run.metadata,
        rows_per_shard=rows_per_shard,
        rows_per_group=rows_per_task,
    )
    names = " and ".join(dict.fromkeys(stage.variant for stage in stages))
    owed = (num_ready - len(finished)) * sum(stage.generations for stage in stages)
    with progress(f"generate {names}", owed, "completions") as meter, _watching(board, meter, stages):
        data.write_datasink(sink, ray_remote_args={"num_cpus": 0})
        meter.update(owed)


@contextmanager
def _watching(board: Any, meter: Meter, stages: tuple[Stage, ...]) -> Iterator[None]:
    """Keep the meter up to date from the board, once a second."""
    names = {stage.variant for stage in stages}
    stop = threading.Event()

    def look() -> tuple[int, int]:
        totals: dict[str, Totals] = ray.get(board.totals.remote(), timeout=10)
        mine = [totals[name] for name in names if name in totals]
        return sum(total.requests + total.errors for total in mine), sum(total.tokens for total in mine)

    before, tokens_before = look()

    def watch() -> None:
        last, last_tokens = time.monotonic(), tokens_before
        while not stop.wait(1.0):
            try:
                done, tokens = look()
            except ray.exceptions.RayError:
                continue  # the board is busy or going away; a figure late is no harm
            now = time.monotonic()
            rate = f"{(tokens - last_tokens) / (now - last):,.0f} tokens/s" if done > before else "engine starts"
            meter.update(done - before, rate)
            last, last_tokens = now, tokens

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _pool(data: Dataset, run: Run, stage: Stage, board: Any) -> Dataset:
    recipe = run.order.recipe
    variant = recipe.variants[stage.variant]
    num_tasks = 1 + math.ceil(
        REQUESTS_AHEAD * variant.max_num_seqs / (recipe.rows_per_task * max(1.0, stage.generations))
    )
    return data.map_batches(
        Pool,
        fn_constructor_kwargs={
            "name": stage.variant,
            "variant": variant.model_copy(update={"model": resolve(variant)}),
            "strategies": run.order.strategies,
            "sampling": recipe.sampling,
            "run_seed": recipe.seed,
            "cpus": int(stage.cpus),
            "logs": str(run.logs),
            "board": board,
        },
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=stage.replicas,
            max_tasks_in_flight_per_actor=2 * num_tasks,
            max_concurrent_calls_per_actor=num_tasks,
        ),
        num_cpus=stage.cpus,
        num_gpus=stage.gpus or None,
        udf_modifying_row_count=False,
    )


def _finished(directory: Path) -> np.ndarray:
    """Sorted ids of the rows that are stored in a directory."""
    paths = [str(path) for path in shards(directory)] if directory.is_dir() else []
    return np.asarray(ray.get(finished_ids.remote(paths))) if paths else np.empty(0, dtype="S32")


def _books(run: Run, final: Path) -> dict[str, Any]:
    """Every prompt that is ready has one row of generations."""
    rows = _finished(final)
    num_unique = len(np.unique(rows))
    ready = run.manifest["prompts"]["ready"]
    if not len(rows) == num_unique == ready:
        raise RunError(
            f"the books do not balance: {ready} prompts are ready, {len(rows)} rows of generations are stored, "
            f"{num_unique} of them different; run the same command again to fill what is missing"
        )
    return {"prompts": ready}


def _quiet_ray_data() -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A large model may load for longer than the default of half an hour without any block moving.
    context.execution_no_progress_timeout_s = -1
