"""What watching shows: figures by variant and the pace of a step, computed from looks at the board."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from factory.board import Totals, View

# Tokens a second are of the last moments: a stall shows at once. The time that is left follows the last two minutes.
RATE_OVER_S = 10.0
PACE_OVER_S = 120.0
SAMPLE_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Figures:
    """One variant in a step of this command."""

    prompts: int  # that have passed it
    wanted: int  # prompts that are to pass it
    completions: int
    failed: int
    tokens_in: float  # prompt tokens a second
    tokens_out: float  # new tokens a second
    queue: int  # requests that the engines have and have not finished
    serving: int  # replicas
    starting: int
    cache_hits: float | None  # the share of prompt tokens that came from the prefix cache; None before the first


class Rates:
    """Turns looks at the board, whose counts are those of the command, into the figures of one step."""

    def __init__(self, wanted: Mapping[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._wanted = wanted
        self._clock = clock
        self._before: dict[str, Totals] | None = None
        self._looks: deque[tuple[float, dict[str, Totals]]] = deque()

    def look(self, view: View) -> dict[str, Figures]:
        """The figures now; the first look is where the step begins."""
        if self._before is None:
            self._before = view.totals
        now = self._clock()
        self._looks.append((now, view.totals))
        while len(self._looks) > 2 and self._looks[1][0] <= now - RATE_OVER_S:
            self._looks.popleft()
        since, then = self._looks[0]
        return {
            name: _figures(
                wanted,
                view.totals.get(name, Totals()),
                then.get(name, Totals()),
                self._before.get(name, Totals()),
                now - since,
            )
            for name, wanted in self._wanted.items()
        }


def _figures(wanted: int, total: Totals, then: Totals, before: Totals, seconds: float) -> Figures:
    asked = total.prompt_tokens - before.prompt_tokens
    return Figures(
        prompts=min(wanted, total.prompts - before.prompts),  # what is made again after a fault is no progress
        wanted=wanted,
        completions=total.requests - before.requests,
        failed=total.failed - before.failed,
        tokens_in=_rate(total.prompt_tokens - then.prompt_tokens, seconds),
        tokens_out=_rate(total.tokens - then.tokens, seconds),
        queue=total.waiting,
        serving=total.replicas,
        starting=total.starting,
        cache_hits=(total.cached_tokens - before.cached_tokens) / asked if asked else None,
    )


def _rate(number: int, seconds: float) -> float:
    # Posts of a replica may arrive out of order, so a count may step back for a moment.
    return max(0.0, number / seconds) if seconds else 0.0


class Pace:
    """How fast a step goes, and how much time is left. What comes before the first result, such as the start of an
    engine, does not count."""

    def __init__(self, total: float | None) -> None:
        self.total = total
        self.done = 0.0
        self._samples: deque[tuple[float, float]] = deque()

    def update(self, done: float, now: float) -> None:
        """So much is done at this time."""
        self.done = done if self.total is None else min(done, self.total)
        samples = self._samples
        if done and (not samples or now - samples[-1][0] >= SAMPLE_EVERY_S):
            samples.append((now, self.done))
        while len(samples) > 2 and samples[1][0] <= now - PACE_OVER_S:
            samples.popleft()

    @property
    def rate(self) -> float | None:
        """Units a second; None as long as nothing can be said."""
        if len(self._samples) < 2:
            return None
        (since, before), (now, done) = self._samples[0], self._samples[-1]
        return (done - before) / (now - since) or None

    @property
    def left(self) -> float | None:
        """Seconds; None as long as nothing can be said."""
        if self.total is None:
            return None
        if self.done >= self.total:
            return 0.0
        return (self.total - self.done) / self.rate if self.rate else None
