"""The pool: actors that host one variant and add to each passing row the completions that the variant owes it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pyarrow as pa
import ray

from factory.board import STRIKES, Card, Post
from factory.engine import open_engine
from factory.engine.base import Completion, EngineDead, RequestError
from factory.plan import owing
from factory.recipe import Sampling, Variant
from factory.request import build, seed
from factory.secret import Secret
from factory.shard import COMPLETION, GENERATION
from strategies.contrast import Generation, Message, Strategy
from strategies.reading import answer
from strategies.score import Scores

POST_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Job:
    """What a pool is to do; the same for all its replicas."""

    variant: str
    settings: Variant
    strategies: tuple[Strategy, ...]
    scores: Scores | None
    sampling: Sampling
    run_seed: int
    cpus: int
    rows_at_once: int
    logs: str
    key: Secret | None  # of the endpoint; the driver has it from its environment, which actors do not see


class Pool:
    """One replica. Ray Data calls it with blocks of rows, several at a time; all their requests share one engine.

    One row in, one row out, with its completions added. What a row is owed is worked out here from its prompt, so
    nothing but prompts and completions travels. An engine that dies or hangs ends the process; Ray starts it again
    with the same blocks, and the rows that were in flight are then served one at a time, so that the one that
    kills engines is found.
    """

    def __init__(self, job: Job, board: Any) -> None:
        _log_to(Path(job.logs), job.variant)
        self._job = job
        self._board = board
        context = ray.get_runtime_context()
        self._replica = context.get_actor_id()
        cores = tuple(sorted(os.sched_getaffinity(0)))
        card = Card(
            self._replica, job.variant, context.get_node_id(), os.getpid(), cores, job.cpus, job.settings.deadline
        )
        mine = ray.get(board.enter.remote(card))
        self._post = Post()
        self._serving: set[str] = set()
        self._waiting = 0
        self._stopping = False
        self._closed = threading.Event()
        self._last_words = threading.Lock()
        self._first_request_at: float | None = None
        self._progress_at = time.monotonic()
        self._gate = Gate(job.rows_at_once)
        # A thread: the loop may be held up, and the start of an engine takes minutes.
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        self._engine = open_engine(job.variant, job.settings, job.sampling, mine, job.key)
        ray.get(board.ready.remote(self._replica))

    async def __call__(self, block: pa.Table) -> pa.Table:
        """Rows with the columns of ``GENERATION``."""
        rows = block.to_pylist()
        strikes = await self._board.begin.remote(self._replica, [row["prompt_id"] for row in rows])
        served = await asyncio.gather(*(self._serve(row, strikes.get(row["prompt_id"], ())) for row in rows))
        if None in served:  # the run is stopping, and these were not begun
            block = block.filter(pa.array([completions is not None for completions in served]))
        self._board.post.remote(self._replica, self._report())
        column = pa.array([c for c in served if c is not None], type=pa.list_(COMPLETION))
        return block.drop_columns(["completions"]).append_column("completions", column).select(GENERATION.names)

    async def _serve(self, row: dict[str, Any], strikes: Sequence[str]) -> list[dict[str, Any]] | None:
        """All completions of a row: those that came with it, and those that this variant can make now."""
        prompt = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
        there = {completion["generation_id"]: completion for completion in row["completions"]}
        mine: dict[str, Generation] = {}
        for generation in owing(prompt, self._job.strategies, self._job.scores):
            # Ids are most of the time that a row takes here: none is worked out in vain.
            if generation.variant != self._job.variant or generation.id in there:
                continue
            if all(reply.id in there or reply.id in mine for reply in generation.replies):
                mine[generation.id] = generation
        if not mine:
            self._post.prompts += 1
            return [*there.values()]
        if len(strikes) >= STRIKES:
            why = f"engine_died: set aside, its engine was lost {len(strikes)} times ({'; '.join(strikes)})"
            self._fail(why, len(mine))
            self._post.prompts += 1
            set_aside = ({**_failed(g, why), "seed": seed(self._job.run_seed, g.id)} for g in mine.values())
            return [*there.values(), *set_aside]
        async with self._gate.row(alone=bool(strikes)):
            if self._stopping:
                return None
            self._serving.add(row["prompt_id"])
            made: dict[str, asyncio.Task[dict[str, Any]]] = {}
            for identity, generation in mine.items():
                made[identity] = asyncio.ensure_future(self._resolve(generation, there, dict(made)))
            new = await asyncio.gather(*made.values())
            self._serving.discard(row["prompt_id"])
        self._post.prompts += 1
        return [*there.values(), *new]

    async def _resolve(
        self, generation: Generation, there: dict[str, dict[str, Any]], made: dict[str, asyncio.Task[dict[str, Any]]]
    ) -> dict[str, Any]:
        """One completion, after the answers that it replies to."""
        answers: dict[str, str] = {}
        for reply in generation.replies:
            source = there.get(reply.id) or await made[reply.id]
            if source["error"] is not None or source["answer"] is None:
                why = source["error"] or "unparseable"
                if generation.measure is None:  # of an answer that is not there nothing is to be measured
                    self._fail("reply_missing", 1)
                return _failed(generation, f"the answer that it replies to is missing: {why}")
            answers[reply.id] = source["answer"]
        job = self._job
        request = build(generation, answers, run_seed=job.run_seed, sampling=job.sampling, variant=job.settings)
        if self._waiting == 0:
            self._progress_at = time.monotonic()
        if self._first_request_at is None:
            self._first_request_at = time.monotonic()
        self._waiting += 1
        try:
            completion = await self._engine.complete(request)
        except RequestError as error:
            self._progress_at = time.monotonic()
            self._fail(str(error), 1)
            return {**_failed(generation, str(error)), "seed": request.seed}
        except EngineDead as error:
            await asyncio.to_thread(self._give_up, str(error))
            raise  # never reached: the process has ended
        finally:
            self._waiting -= 1
        self._count(completion)
        return {
            "generation_id": generation.id,
            "variant": generation.variant,
            "text": completion.text,
            "answer": None if generation.measure else answer(completion.text, generation.read, request.prefill),
            "value": completion.value,
            "finish": completion.finish,
            "prompt_tokens": completion.prompt_tokens,
            "tokens": completion.tokens,
            "cached_tokens": completion.cached_tokens,
            "seed": request.seed,
            "error": None,
        }

    def _count(self, completion: Completion) -> None:
        self._progress_at = time.monotonic()
        self._post.requests += 1
        self._post.prompt_tokens += completion.prompt_tokens
        self._post.tokens += completion.tokens
        self._post.cached_tokens += completion.cached_tokens
        assert self._first_request_at is not None
        self._post.seconds = self._progress_at - self._first_request_at

    def _fail(self, error: str, number: int) -> None:
        kind = error.partition(":")[0][:80]
        self._post.errors[kind] = self._post.errors.get(kind, 0) + number

    def _beat(self) -> None:
        """Give a sign of life every second, and end a process whose engine hangs."""
        while not self._closed.wait(POST_EVERY_S):
            try:
                self._stopping = ray.get(self._board.post.remote(self._replica, self._report()), timeout=10)
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayError:
                return  # the run is over
            stalled = time.monotonic() - self._progress_at
            if self._waiting and self._engine.watched and stalled > self._job.settings.deadline:
                self._give_up(f"its engine gave nothing for {stalled:.0f} s")

    def _report(self) -> Post:
        serving = tuple(self._serving)
        return replace(self._post, waiting=self._waiting, serving=serving, errors=dict(self._post.errors))

    def _give_up(self, why: str) -> NoReturn:
        """End this process and all that it started; Ray starts it again with the same blocks."""
        self._last_words.acquire()  # held to the end: all requests in flight fail at once, and one of them says so
        logging.getLogger(__name__).error("giving up: %s; in flight: %s", why, sorted(self._serving))
        try:
            ray.get(self._board.strike.remote(self._replica, tuple(self._serving), why), timeout=10)
        finally:
            for child in psutil.Process().children(recursive=True):
                child.kill()
            os._exit(1)

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            self._closed.set()
            engine.close()
            self._board.leave.remote(self._replica)


class Gate:
    """Lets ``width`` rows through at once, in order of arrival; one that goes alone waits for all before it."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._slots = asyncio.Semaphore(width)
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def row(self, *, alone: bool) -> AsyncIterator[None]:
        wanted = self._width if alone else 1
        async with self._turn:
            for _ in range(wanted):
                await self._slots.acquire()
        try:
            yield
        finally:
            for _ in range(wanted):
                self._slots.release()


def _failed(generation: Generation, error: str) -> dict[str, Any]:
    empty = dict.fromkeys(field.name for field in COMPLETION)
    return {**empty, "generation_id": generation.id, "variant": generation.variant, "error": error}


def _log_to(logs: Path, name: str) -> None:
    """Send what this process and its children print to the run's logs, where the disk of the run is also ours."""
    if not logs.is_dir():
        return
    file = os.open(logs / f"pool-{name}-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
