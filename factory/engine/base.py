"""The contract between a pool and an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from strategies.contrast import Measure, Sampling


@dataclass(frozen=True, slots=True)
class Request:
    """A generation whose replies are filled in: plain text, ready for a chat template."""

    generation_id: str
    messages: tuple[tuple[str, str], ...]  # (role, content)
    prefill: str
    sampling: Sampling
    seed: int
    measure: Measure | None = None
    given: str = ""  # of which the log-probability is asked


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote after the assistant header and the prefill."""

    text: str
    finish: str  # "stop" or "length"
    prompt_tokens: int
    tokens: int
    cached_tokens: int = 0
    value: float | None = None  # what was measured: a log-probability in nats, or a reward


class RequestError(Exception):
    """This one request cannot be served; it becomes data (the completion's ``error``), and the run goes on."""


class EngineDead(Exception):
    """The engine is gone and serves nothing any more; its process is to be started again."""


class Engine(Protocol):
    """Serves many requests at once; ``complete`` is called concurrently."""

    watched: bool
    """Whether the pool ends it where it gives nothing for the deadline; no, where all its own waits are bounded."""

    async def complete(self, request: Request) -> Completion:
        """Raises ``RequestError`` for a request that can never succeed, and ``EngineDead``; all else ends the run."""
        ...

    def close(self) -> None:
        """Stop what the engine started."""
        ...
