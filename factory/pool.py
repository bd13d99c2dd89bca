"""The pool: actors that host one variant and add to each passing row the completions that the variant owes it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from factory.board import Post
from factory.engine import open_engine
from factory.engine.base import Completion, RequestError
from factory.plan import unique
from factory.recipe import Sampling, Variant
from factory.request import build
from factory.shard import COMPLETION, GENERATION
from strategies.contrast import Generation, Message, Strategy
from strategies.reading import answer

POST_EVERY_S = 1.0


class Pool:
    """One replica. Ray Data calls it with blocks of rows, several at a time; all their requests share one engine.

    One row in, one row out, with its completions added. What a row is owed is worked out here from its prompt, so
    nothing but prompts and completions travels.
    """

    def __init__(
        self,
        *,
        name: str,
        variant: Variant,
        strategies: Sequence[Strategy],
        sampling: Sampling,
        run_seed: int,
        cpus: int,
        logs: str,
        board: Any,
    ) -> None:
        _log_to(Path(logs), name)
        self._name = name
        self._variant = variant
        self._strategies = strategies
        self._sampling = sampling
        self._run_seed = run_seed
        self._board = board
        context = ray.get_runtime_context()
        self._replica = context.get_actor_id()
        self._node = context.get_node_id()
        cores = ray.get(board.claim.remote(self._node, self._replica, sorted(os.sched_getaffinity(0)), cpus))
        self._engine = open_engine(name, variant, sampling, cores)
        self._post = Post(name)
        self._posted = 0.0
        self._first_request_at: float | None = None

    async def __call__(self, block: pa.Table) -> pa.Table:
        """Rows with the columns of ``GENERATION`` or, in the first pool, of ``PROMPT``."""
        rows = block.to_pylist()
        completions = await asyncio.gather(*(self._serve(row) for row in rows))
        self._tell(force=True)
        column = pa.array(completions, type=pa.list_(COMPLETION))
        if "completions" in block.column_names:
            block = block.drop_columns(["completions"])
        return block.append_column("completions", column).select(GENERATION.names)

    async def _serve(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """All completions of a row: those that came with it, and those that this variant can make now."""
        prompt = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
        owed = unique(strategy.contrast(prompt) for strategy in self._strategies)
        there = {completion["generation_id"]: completion for completion in row.get("completions") or ()}
        made: dict[str, asyncio.Task[dict[str, Any]]] = {}
        for identity, generation in owed.items():  # each after those whose answers it needs
            needs = [reply.id for reply in generation.replies]
            if generation.variant != self._name or identity in there or any(n not in there | made for n in needs):
                continue
            made[identity] = asyncio.ensure_future(self._resolve(generation, there, dict(made)))
        new = await asyncio.gather(*made.values())
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
                return _failed(generation, f"the answer that it replies to is missing: {why}")
            answers[reply.id] = source["answer"]
        request = build(generation, answers, run_seed=self._run_seed, sampling=self._sampling, variant=self._variant)
        if self._first_request_at is None:
            self._first_request_at = time.monotonic()
        try:
            completion = await self._engine.complete(request)
        except RequestError as error:
            self._post.errors += 1
            return {**_failed(generation, str(error)), "seed": request.seed}
        self._count(completion)
        return {
            "generation_id": generation.id,
            "variant": generation.variant,
            "text": completion.text,
            "answer": answer(completion.text, generation.read, request.prefill),
            "finish": completion.finish,
            "prompt_tokens": completion.prompt_tokens,
            "tokens": completion.tokens,
            "cached_tokens": completion.cached_tokens,
            "seed": request.seed,
            "error": None,
        }

    def _count(self, completion: Completion) -> None:
        self._post.requests += 1
        self._post.prompt_tokens += completion.prompt_tokens
        self._post.tokens += completion.tokens
        self._post.cached_tokens += completion.cached_tokens
        assert self._first_request_at is not None
        self._post.seconds = time.monotonic() - self._first_request_at
        self._tell()

    def _tell(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if force or now - self._posted >= POST_EVERY_S:
            self._posted = now
            self._board.post.remote(self._replica, replace(self._post))

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.close()
            self._board.release.remote(self._node, self._replica)


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
