"""The run's board: one small actor where replicas say how far they are, claim CPU cores, and leave word when they fail.

Not on the way of any data: a lost post costs a figure, not a row.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import ray

from factory.errors import RunError

# A prompt with so many strikes is set aside: it was in flight when an engine died, and alone when the next one did.
STRIKES = 2
# Replicas of one variant that die one after another, without one completion between them, end the run.
DEATHS_IN_A_ROW = 5


@dataclass(frozen=True, slots=True)
class Card:
    """Who a replica is."""

    replica: str
    variant: str
    node: str
    pid: int
    cores: tuple[int, ...]  # that its process may use
    cpus: int  # that it was given
    deadline: float


@dataclass(slots=True)
class Post:
    """How far one replica is, counted since it started."""

    prompts: int = 0  # that have passed, also those to which nothing was owed
    requests: int = 0  # that were completed
    errors: dict[str, int] = field(default_factory=dict)  # kind -> requests that failed
    prompt_tokens: int = 0
    tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0  # from the first request that the engine got to its latest completion
    waiting: int = 0  # requests that the engine has and has not finished
    serving: tuple[str, ...] = ()  # prompts that the engine is at


@dataclass(slots=True)
class Totals:
    """What all replicas of one variant have done in this run of the command."""

    prompts: int = 0
    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    cached_tokens: int = 0
    waiting: int = 0
    replicas: int = 0  # that serve now
    starting: int = 0
    seconds: float = 0.0  # of the replica that served longest
    errors: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Fault:
    """A replica that was lost, and what it cost."""

    variant: str
    what: str
    prompts: int  # that were in flight and are made again
    at: float  # seconds since the epoch
    lost_s: float | None = None  # until it served again; None where it never did


@dataclass(slots=True)
class Silent:
    """A replica that has not been heard of for longer than its deadline."""

    card: Card
    seconds: float


@dataclass(slots=True)
class View:
    """What the driver looks at once a second."""

    totals: dict[str, Totals]
    faults: list[Fault]
    silent: list[Silent]
    cards: list[Card]
    end: str | None  # why the run is to end with an error


@dataclass(slots=True)
class _Replica:
    card: Card
    cores: list[int]
    post: Post = field(default_factory=Post)
    heard: float = field(default_factory=time.monotonic)
    ready: bool = False
    fault: Fault | None = None  # that its restart is to end


class _Board:
    def __init__(self) -> None:
        self._replicas: dict[str, _Replica] = {}
        self._past: dict[str, Post] = {}  # variant -> counts of replicas that are gone
        self._strikes: dict[str, list[str]] = {}
        self._deaths: Counter[str] = Counter()
        self._faults: list[Fault] = []
        self._stopping = False
        self._end: str | None = None

    def enter(self, card: Card) -> list[int]:
        """A replica's process starts; gives it CPU cores of its node, disjoint from those of the others there as long
        as there are any free. Two vLLM engines that are left to themselves bind to the same cores.

        Raises:
            RunError: the run is to end.
        """
        self._require_going_on()
        before = self._replicas.get(card.replica)
        fault = None
        if before is not None:  # Ray has restarted it
            if before.fault is None and before.card.node == card.node:
                self.strike(card.replica, before.post.serving, "its process died")
            fault = before.fault or self._note(before, "its node was lost")
            self._require_going_on()
            self._leave(card.replica)
        taken = {core for other in self._replicas.values() if other.card.node == card.node for core in other.cores}
        free = [core for core in card.cores if core not in taken] or list(card.cores)
        self._replicas[card.replica] = _Replica(card, free[: card.cpus], fault=fault)
        return free[: card.cpus]

    def ready(self, replica: str) -> None:
        """The replica's engine is up."""
        mine = self._replicas[replica]
        mine.ready, mine.heard = True, time.monotonic()
        if mine.fault is not None:
            mine.fault.lost_s = round(time.time() - mine.fault.at, 2)
            mine.fault = None

    def leave(self, replica: str) -> None:
        """The replica is no longer needed; its cores are free."""
        if replica in self._replicas:
            self._leave(replica)

    def post(self, replica: str, post: Post) -> bool:
        """A replica's counts so far, as a sign of life too. Gives whether the run is stopping."""
        mine = self._replicas.get(replica)
        if mine is not None:
            if post.requests > mine.post.requests:
                self._deaths.pop(mine.card.variant, None)
            mine.post, mine.heard = post, time.monotonic()
        return self._stopping

    def begin(self, replica: str, prompts: Sequence[str]) -> dict[str, list[str]]:
        """The strikes of the prompts that a replica is about to serve.

        Raises:
            RunError: the run is to end.
        """
        self._require_going_on()
        return {prompt: self._strikes[prompt] for prompt in prompts if prompt in self._strikes}

    def strike(self, replica: str, prompts: Sequence[str], why: str) -> None:
        """A replica's engine died or hangs with these prompts in flight; each may be the cause."""
        mine = self._replicas[replica]
        variant = mine.card.variant
        for prompt in prompts:
            strikes = self._strikes.setdefault(prompt, [])
            strikes.append(why)
            if len(strikes) == STRIKES:
                self._deaths.pop(variant, None)  # a culprit was found, which is progress
        self._deaths[variant] += 1
        mine.fault = self._note(mine, why)
        if self._deaths[variant] >= DEATHS_IN_A_ROW:
            self.end(
                f"variant '{variant}': {DEATHS_IN_A_ROW} replicas in a row were lost without one completion ({why})"
            )

    def struck_silent(self, replica: str, why: str) -> None:
        """The driver is about to end a replica that gives no sign of life."""
        mine = self._replicas.get(replica)
        if mine is not None and mine.fault is None:
            self.strike(replica, mine.post.serving, why)

    def stop(self) -> None:
        """Finish what is in flight, and begin nothing new."""
        self._stopping = True

    def end(self, why: str) -> None:
        """End the run with an error as soon as a replica asks for anything."""
        self._end = self._end or why

    def lose(self, replica: str, why: str) -> None:
        """The replica's node is gone; nothing is held against the prompts that it was at."""
        mine = self._replicas.get(replica)
        if mine is not None and mine.fault is None:
            mine.fault = self._note(mine, why)

    def rest(self) -> None:
        """An execution has ended, and its replicas with it."""
        for replica in list(self._replicas):
            self._leave(replica)

    def view(self) -> View:
        """Counts by variant, and who is silent."""
        now = time.monotonic()
        totals: dict[str, Totals] = {}
        posts = [(mine.card.variant, mine.post) for mine in self._replicas.values()]
        for variant, post in [*self._past.items(), *posts]:
            total = totals.setdefault(variant, Totals())
            for name in ("prompts", "requests", "prompt_tokens", "tokens", "cached_tokens", "waiting"):
                setattr(total, name, getattr(total, name) + getattr(post, name))
            total.errors += Counter(post.errors)
            total.failed = total.errors.total()
            total.seconds = max(total.seconds, post.seconds)
        for mine in self._replicas.values():
            totals[mine.card.variant].replicas += mine.ready
            totals[mine.card.variant].starting += not mine.ready
        return View(
            totals=totals,
            faults=self._faults,
            silent=[
                Silent(mine.card, now - mine.heard)
                for mine in self._replicas.values()
                if now - mine.heard > mine.card.deadline
            ],
            cards=[mine.card for mine in self._replicas.values()],
            end=self._end,
        )

    def _require_going_on(self) -> None:
        if self._end is not None:
            raise RunError(self._end)

    def _note(self, mine: _Replica, what: str) -> Fault:
        # What it cost counts from the last sign of life, which a frozen replica gave long before it was found.
        at = time.time() - (time.monotonic() - mine.heard)
        fault = Fault(mine.card.variant, what, len(mine.post.serving), round(at, 2))
        self._faults.append(fault)
        return fault

    def _leave(self, replica: str) -> None:
        mine = self._replicas.pop(replica)
        past = self._past.setdefault(mine.card.variant, Post())
        for name in ("prompts", "requests", "prompt_tokens", "tokens", "cached_tokens"):
            setattr(past, name, getattr(past, name) + getattr(mine.post, name))
        past.errors = dict(Counter(past.errors) + Counter(mine.post.errors))
        past.seconds = max(past.seconds, mine.post.seconds)


Board = ray.remote(num_cpus=0)(_Board)
