"""The run's board: one small actor where pools post how far they are and engines claim their CPU cores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ray


@dataclass(slots=True)
class Post:
    """How far one replica is, counted since it started."""

    variant: str
    prompts: int = 0
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0  # from the first request that the engine got to its latest completion


@dataclass(slots=True)
class Totals:
    """What all replicas of one variant have posted together."""

    prompts: int = 0
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    cached_tokens: int = 0
    replicas: int = 0
    seconds: float = 0.0  # of the replica that served longest


class _Board:
    """Not on the way of any data: a lost post costs a figure, not a row."""

    def __init__(self) -> None:
        self._posts: dict[str, Post] = {}
        self._claims: dict[str, dict[str, list[int]]] = {}

    def post(self, replica: str, post: Post) -> None:
        """A replica's counts so far; the last post of a replica counts."""
        self._posts[replica] = post

    def totals(self) -> dict[str, Totals]:
        """Counts by variant."""
        out: dict[str, Totals] = {}
        for post in self._posts.values():
            total = out.setdefault(post.variant, Totals())
            for name in ("prompts", "requests", "errors", "prompt_tokens", "tokens", "cached_tokens"):
                setattr(total, name, getattr(total, name) + getattr(post, name))
            total.replicas += 1
            total.seconds = max(total.seconds, post.seconds)
        return out

    def claim(self, node: str, replica: str, cores: Sequence[int], number: int) -> list[int]:
        """CPU cores of a node for one replica, disjoint from those of the others as long as there are any free.

        Two vLLM engines that are left to themselves bind to the same cores. A replica that starts again keeps its
        cores.
        """
        claims = self._claims.setdefault(node, {})
        if replica not in claims:
            taken = {core for held in claims.values() for core in held}
            free = [core for core in cores if core not in taken] or list(cores)
            claims[replica] = free[:number]
        return claims[replica]

    def release(self, node: str, replica: str) -> None:
        """The replica is gone; its cores are free."""
        self._claims.get(node, {}).pop(replica, None)


Board = ray.remote(num_cpus=0)(_Board)
