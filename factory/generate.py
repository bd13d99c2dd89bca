"""Generate: every completion that the recipe asks for, made once, stored, and counted.

A row is in the set of the number of variants that it has passed: 0 are the prompts, or the generations of a recipe that
has since gained a strategy; the last is complete. Each step takes rows from one set to a later one, so what is stored
counts whatever schedule the next command has, and a row that is in a later set is never read again from an earlier one.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from factory import compact
from factory.board import Board, View
from factory.errors import PopalignError, RunError, Stopped, log, root_cause
from factory.figure import Rates
from factory.metric import Metrics
from factory.model import resolve
from factory.place import Place
from factory.plan import Plan, Stage, refit, takes_all_cpus
from factory.pool import Job, Pool
from factory.run import Run, now, plain
from factory.secret import from_environment
from factory.session import cluster_address, gathered, nodes, quiet_data
from factory.shard import GENERATION, ShardSink, parquet, rows_per_group, shards
from factory.source import Finished, Slice, SliceSource, slices
from factory.terminal import Meter
from factory.watch import Limits, NodeLost, signals, watching

# Requests that wait at an engine, as a multiple of the sequences it decodes at once: it never runs dry, and rows
# are finished (and stored) one after another instead of all at the end.
REQUESTS_AHEAD = 1.5
# Tasks of one Ray Data execution. The driver holds some kilobytes for each; more rows than fit go through one
# execution after another, so that its memory does not grow with their number.
MAX_TASKS = 16_384
# What is stored at once is what a crash cannot take away; a set has a thousand such files, or files of this many rows.
FILES_PER_SET = 1_000
MAX_ROWS_PER_FILE = 8_192
# Executions that end with a lost node or actor and have not stored anything: the next would not either.
MAX_FRUITLESS = 3

# What an execution ends with where a part of the cluster went away under it.
LOST = (NodeLost, ray.exceptions.RayActorError, ray.exceptions.RaySystemError, ray.exceptions.ObjectLostError)

# (title, total, unit) -> something to tell how far it is; see factory.terminal
Progress = Callable[[str, float | None, str], AbstractContextManager[Meter]]


def generate(run: Run, plan: Plan, progress: Progress, limits: Limits) -> dict[str, Any]:
    """Make the run's generations, or what is missing of them, and say in the manifest that they are complete.

    Raises:
        RunError: rows are missing at the end, or too many fail; the run directory keeps what is done.
        Stopped: a limit was reached or a signal came.
    """
    entry = run.manifest.get("generations")
    if entry and (entry["fingerprint"] == run.order.fingerprint or not plan.stages):
        run.update(generations={**entry, **_made_by(run)})
        return dict(run.manifest["generations"])
    # On the driver's node: if that one is lost, so is the driver.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    work = _Work(run, plan, Board.options(scheduling_strategy=here).remote(), progress, limits)
    started = time.monotonic()
    ended = "failed"
    try:
        with signals(limits):
            for first, last in plan.steps:
                work.step(first, last)
        ended = "done"
    except Stopped:
        ended = "stopped"
        raise
    finally:
        _note_effort(run, work, time.monotonic() - started, ended)
    work.finish()
    return dict(run.manifest["generations"])


def _made_by(run: Run) -> dict[str, Any]:
    return {"fingerprint": run.order.fingerprint, "recipe": plain(run.order.recipe)}


def _note_effort(run: Run, work: _Work, seconds: float, ended: str) -> None:
    """Add what this command did, also in vain, to the manifest's list."""
    view: View = ray.get(work.board.view.remote())
    work.metrics.show(view)
    entry = {
        "at": now(),
        "seconds": round(seconds, 2),
        "ended": ended,
        "by_variant": {name: _figures(total) for name, total in view.totals.items()},
        "faults": [asdict(fault) for fault in view.faults] + work.lost,
    }
    run.update(effort=[*run.manifest.get("effort", []), entry])


def _figures(total: Any) -> dict[str, Any]:
    names = ("requests", "failed", "prompt_tokens", "tokens", "cached_tokens", "replicas", "seconds")
    return {name: getattr(total, name) for name in names}


class _Work:
    """The steps of one command."""

    def __init__(self, run: Run, plan: Plan, board: Any, progress: Progress, limits: Limits) -> None:
        self._run = run
        self._stages = plan.stages
        self._num_steps = len(plan.steps)
        self.board = board
        self.metrics = Metrics(run.path.name)
        self._progress = progress
        self._limits = limits
        self._ready: int = run.manifest["prompts"]["ready"]
        self.lost: list[dict[str, Any]] = []  # executions that ended with a lost node
        entry = run.manifest.get("generations")
        base = run.path / "generations" / entry["set"] if entry else run.current("prompts", "generate RECIPE")
        here = run.path / "progress" / run.order.fingerprint
        self._sets = [base, *(here / str(number) for number in range(1, len(plan.stages) + 1))]
        quiet_data()

    def step(self, first: int, last: int) -> None:
        """Take all rows through the pools ``first`` to ``last``."""
        stages: Sequence[Stage] = self._stages[first : last + 1]
        fruitless = 0
        left = [self._ready - self._stored(passed) for passed in range(first + 1, last + 2)]
        stored = self._ready - left[-1]
        if stored >= self._ready:
            return
        prompts: Counter[str] = Counter()
        for stage, number in zip(stages, left, strict=True):
            prompts[stage.variant] += number
        rates = Rates(prompts)
        variants = self._run.order.recipe.variants
        crowded = cluster_address() is None and any(takes_all_cpus(variants[stage.variant]) for stage in stages)
        owed = sum(stage.generations * number for stage, number in zip(stages, left, strict=True))
        title = "generate" if self._num_steps == 1 else f"generate ({first + 1} of {self._num_steps})"
        with self._progress(title, owed, "completions") as meter:
            while stored < self._ready:
                before, began = stored, time.time()
                try:
                    with watching(self.board, meter, rates, self.metrics, self._limits, crowded=crowded):
                        self._execute(stages, first, last)
                    error = None
                except (ray.exceptions.RayError, NodeLost) as raised:
                    error = raised
                    # What a replica raises where it starts again reaches us without its message.
                    if (why := ray.get(self.board.view.remote()).end) is not None:
                        raise RunError(why) from raised
                ray.get(self.board.rest.remote())
                stored = self._stored(last + 1)
                if self._limits.why is not None:
                    raise self._limits.why.with_way(f"{stored} of {self._ready} prompts are stored", self._run.path)
                if error is None:
                    break
                fruitless = fruitless + 1 if stored == before else 0
                stages = self._recover(error, stages, fruitless, began, meter)
            meter.update(owed)
        for done in self._sets[1 : last + 1]:  # their rows are all in later sets
            done.remove()

    def _recover(
        self, error: Exception, stages: Sequence[Stage], fruitless: int, began: float, meter: Meter
    ) -> Sequence[Stage]:
        """The pools for another execution after one that was lost with a node; an error of ours is raised."""
        cause = root_cause(error)
        lost = isinstance(cause, LOST)
        left = refit(stages, nodes()) if lost else None
        if left is None or fruitless >= MAX_FRUITLESS or isinstance(cause, PopalignError):
            raise RunError(str(error)) if isinstance(error, NodeLost) else error
        log(error)
        self.lost.append(
            {"variant": " and ".join(stage.variant for stage in stages), "what": type(cause).__name__, "at": began}
        )
        replicas = ", ".join(f"{stage.replicas} x {stage.variant}" for stage in left)
        meter.say(f"a node was lost ({type(cause).__name__}); going on from what is stored with {replicas}")
        return left

    def _stored(self, passed: int) -> int:
        """Prompts whose row is in the set of so many passes, or a later one."""
        _, unique = self._finished(passed).counted()
        return unique

    def _finished(self, passed: int) -> Finished:
        """The ids of the rows in the set of so many passes and all later ones."""
        return Finished([place for folder in self._sets[passed:] for place in shards(folder)], self._ready)

    def _execute(self, stages: Sequence[Stage], first: int, last: int) -> None:
        """Stream the rows that are left through the pools, in as few executions as the driver's memory allows."""
        rows_left = self._ready - self._stored(last + 1)
        rows_per_task = self._rows_per_task(rows_left, stages)
        # The rows that have come furthest first.
        for passed in range(last, first - 1, -1):
            finished = self._finished(passed + 1)
            for chapter in batched(slices(shards(self._sets[passed]), rows_per_task), MAX_TASKS):
                done = finished.among(chapter)
                if self._limits.why is None and len(ray.get(done)) < sum(part.num_rows for part in chapter):
                    self._stream(chapter, done, stages, self._sets[last + 1], rows_per_task)

    def _rows_per_task(self, rows_left: int, stages: Sequence[Stage]) -> int:
        wanted = self._run.order.recipe.rows_per_task
        if wanted is not None:
            return wanted
        share = rows_left / max(stage.replicas for stage in stages)
        # Small sets are cut finely, so that replicas end together. In large ones a task costs the driver 13 ms, and
        # what a replica is at, which a crash repeats, is still below a hundredth of its share.
        return max(1, min(64, math.ceil(share / 8)), min(1024, math.ceil(share / 256)))

    def _stream(
        self, parts: Sequence[Slice], done: ray.ObjectRef, stages: Sequence[Stage], target: Place, rows_per_task: int
    ) -> None:
        """One execution of Ray Data: source, pools, sink."""
        # Tasks that ask for no CPU are bounded by nothing else: 40 of them started 40 workers, each two seconds of CPU.
        at_once = max(2, sum(stage.replicas for stage in stages))
        data = ray.data.read_datasource(
            SliceSource(parts, done), num_cpus=0, concurrency=at_once, override_num_blocks=len(parts)
        )
        for stage in stages:
            data = self._pool(data, stage, rows_per_task)
        rows = max(rows_per_task, min(MAX_ROWS_PER_FILE, self._ready // FILES_PER_SET))
        sink = ShardSink(
            target,
            schema=GENERATION,
            key="prompt_id",
            metadata=self._run.metadata,
            rows_per_shard=rows,
            rows_per_group=rows_per_task,
        )
        data.write_datasink(sink, ray_remote_args={"num_cpus": 0}, concurrency=at_once)

    def _pool(self, data: Dataset, stage: Stage, rows_per_task: int) -> Dataset:
        recipe = self._run.order.recipe
        variant = recipe.variants[stage.variant]
        rows_at_once = 1 + math.ceil(REQUESTS_AHEAD * variant.max_num_seqs / max(1.0, stage.generations))
        # One task more than fill the engine: its first rows take the place of the last rows of the one before.
        num_tasks = 1 + math.ceil(rows_at_once / rows_per_task)
        job = Job(
            variant=stage.variant,
            settings=variant.model_copy(update={"model": resolve(variant)}),
            strategies=self._run.order.strategies,
            scores=self._run.order.scores,
            sampling=recipe.sampling,
            run_seed=recipe.seed,
            cpus=int(stage.cpus),
            rows_at_once=rows_at_once,
            logs=str(self._run.logs),
            key=from_environment(f"variants.{stage.variant}.api_key_env", variant.api_key_env),
        )
        sizes = (
            {"min_size": stage.elastic[0], "max_size": stage.elastic[1], "initial_size": stage.replicas}
            if stage.elastic
            else {"size": stage.replicas}
        )
        return data.map_batches(
            Pool,
            fn_constructor_kwargs={"job": job, "board": self.board},
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                **sizes, max_tasks_in_flight_per_actor=2 * num_tasks, max_concurrent_calls_per_actor=num_tasks
            ),
            num_cpus=stage.cpus,
            num_gpus=stage.gpus or None,
        )

    def finish(self) -> None:
        """Merge the files of the last set into shards, check the books, and switch them in."""
        final = self._sets[-1]
        places = shards(final)
        finished = Finished(places, self._ready)
        num_rows, num_unique = finished.counted()
        if num_unique != self._ready:
            raise RunError(
                f"the books do not balance: {self._ready} prompts are ready, {num_unique} have their generations "
                "stored; run the same command again to fill what is missing"
            )
        owner = compact.owners(places, finished.repeated()) if num_rows != num_unique else {}
        folder = self._run.begin("generations")
        files = {name: size for name, size in final.files().items() if name.endswith(".parquet")}
        num_groups = rows_per_group(self._ready)

        def merge(numbered: tuple[int, list[str]]) -> ray.ObjectRef:
            number, names = numbered
            target = folder / f"{number:05d}.parquet"
            return compact.merge.remote([final / n for n in names], target, self._run.metadata, num_groups, owner)

        numbered = list(enumerate(compact.groups(files)))
        with self._progress("merge", len(numbered), "shards") as meter:
            written, counts = zip(*gathered(merge, numbered, meter.update), strict=True)
        if sum(shard.num_rows for shard in written) != self._ready:
            raise RunError(f"the books do not balance: {self._ready} prompts are ready, and not as many were merged")
        by_variant = {name: asdict(count) for name, count in compact.merged_counts(counts).items()}
        facts = {"prompts": self._ready, "by_variant": by_variant, **_made_by(self._run)}
        self._run.switch("generations", folder, written, **facts)
        (self._run.path / "progress").remove()


def progress_of(run: Run) -> dict[str, Any]:
    """What is stored of generations that are not complete: files and rows of each set of so many passes."""
    folder = run.path / "progress" / run.order.fingerprint
    out = {}
    for place in folder.entries():
        rows = 0
        for shard in shards(place):
            with parquet(shard) as file:
                rows += file.metadata.num_rows
        out[place.name] = rows
    return out


def batched(parts: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """What comes, in lists of at most ``size``."""
    parts = iter(parts)
    while batch := list(itertools.islice(parts, size)):
        yield batch
