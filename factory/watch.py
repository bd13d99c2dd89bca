"""Watching a run from the driver: progress, replicas that are silent or lost, and the reasons to stop early."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from factory.board import Card, View
from factory.errors import Stopped
from factory.figure import Rates
from factory.metric import Metrics
from factory.session import take_cores, yield_cores
from factory.terminal import Meter

LOOK_EVERY_S = 1.0
YIELD_EVERY = 10  # looks: processes of Ray come and go
# A share of failures says little about fewer completions.
ENOUGH_TO_JUDGE = 100
# A replica whose node is lost and that found no room elsewhere for so long is given up, and the pools are planned anew.
HOMELESS_S = 20.0
BREAK_OFF = signal.SIGUSR1


@dataclass(slots=True)
class Limits:
    """When a command is to stop before its work is done: cleanly, with what is in flight stored."""

    max_failure_rate: float = 1.0
    until: float | None = None  # time.monotonic() of the end of the budget
    hours: float | None = None  # the budget, for the message
    signal: signal.Signals | None = None  # what the user or the machine sent
    why: Stopped | None = field(default=None)  # set once the run is stopping

    def due(self) -> Stopped | None:
        """Why the run is to stop now, if it is."""
        if self.signal is not None:
            return Stopped(f"stopped by {self.signal.name}", exit_code=128 + self.signal)
        if self.until is not None and time.monotonic() > self.until:
            return Stopped(f"stopped at the budget of {self.hours:g} hours")
        return None


class NodeLost(Exception):
    """Raised in the driver's main thread, which waits inside Ray Data, to break an execution off."""


@contextmanager
def signals(limits: Limits) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a clean stop; the second ends the command at once."""

    def break_off(number: int, _: Any) -> None:
        raise NodeLost("a replica's node was lost, and there is no room for it elsewhere")

    def ask(number: int, _: Any) -> None:
        limits.signal = signal.Signals(number)
        signal.signal(number, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    before[BREAK_OFF] = signal.signal(BREAK_OFF, break_off)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def watching(
    board: Any, meter: Meter, rates: Rates, metrics: Metrics, limits: Limits, *, crowded: bool = False
) -> Iterator[None]:
    """Look at the board once a second while a step runs. ``crowded``: the engines fill the cores of this machine."""
    watch = _Watch(board, meter, rates, metrics, limits, crowded)
    thread = threading.Thread(target=watch.run, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.over.set()
        thread.join()
        with contextlib.suppress(ray.exceptions.RayError):
            watch.look()
        if crowded:
            take_cores()


class _Watch:
    def __init__(self, board: Any, meter: Meter, rates: Rates, metrics: Metrics, limits: Limits, crowded: bool) -> None:
        self._board = board
        self._meter = meter
        self._rates = rates
        self._metrics = metrics
        self._limits = limits
        self._crowded = crowded
        self._homeless: dict[str, float] = {}  # replica -> since when its node is known to be lost
        self._ended: set[int] = set()
        self._broken_off = False
        self.over = threading.Event()
        self.look()

    def run(self) -> None:
        for look in itertools.count():
            if self.over.wait(LOOK_EVERY_S):
                return
            # The board is busy, or the session is going away: a figure late is no harm.
            with contextlib.suppress(ray.exceptions.RayError):
                view = self.look()
                self._judge(view)
                self._end_silent(view)
                self._end_homeless(view)
                if self._crowded and look % YIELD_EVERY == 0:
                    yield_cores({card.pid for card in view.cards})

    def look(self) -> View:
        """Look at the board, and show it: to the user, and to Prometheus."""
        view: View = ray.get(self._board.view.remote(), timeout=10)
        figures = self._rates.look(view)
        self._meter.update(sum(figure.completions + figure.failed for figure in figures.values()), figures=figures)
        self._metrics.show(view)
        self._metrics.show_step(figures, self._meter.pace)
        return view

    def _judge(self, view: View) -> None:
        """Stop where a limit is reached."""
        limits = self._limits
        for name, total in view.totals.items():
            number = total.requests + total.failed
            if number >= ENOUGH_TO_JUDGE and total.failed / number > limits.max_failure_rate:
                reasons = ", ".join(f"{n} {kind}" for kind, n in total.errors.most_common(3))
                self._board.end.remote(
                    f"variant '{name}': {total.failed} of {number} completions failed ({reasons}), more than "
                    f"max_failure_rate {limits.max_failure_rate:g}"
                )
        if limits.why is None and (why := limits.due()) is not None:
            limits.why = why
            in_flight = sum(total.waiting for total in view.totals.values())
            how = "" if limits.signal is None else "; once more ends at once"
            self._meter.say(f"{why}: waiting for {in_flight} completions that are in flight{how}")
            self._board.stop.remote()

    def _end_silent(self, view: View) -> None:
        """End processes that live and give no sign of life, such as one that was frozen; Ray starts them again."""
        for silent in view.silent:
            card = silent.card
            if card.pid not in self._ended and _alive(card.node):
                self._ended.add(card.pid)
                self._meter.say(
                    f"{card.variant}: a replica gave no sign of life for {silent.seconds:.0f} s; replacing it"
                )
                why = f"its process gave no sign of life for {silent.seconds:.0f} s"
                ray.get(self._board.struck_silent.remote(card.replica, why), timeout=10)
                end_process(card)

    def _end_homeless(self, view: View) -> None:
        """Break off where the node of a replica is lost and it finds no room elsewhere: its blocks wait with it."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        now = time.monotonic()
        lost = {card.replica for card in view.cards if card.node not in alive}
        for replica in lost - self._homeless.keys():
            ray.get(self._board.lose.remote(replica, "its node was lost"), timeout=10)
        self._homeless = {replica: self._homeless.get(replica, now) for replica in lost}
        if any(now - since > HOMELESS_S for since in self._homeless.values()) and not self._broken_off:
            self._broken_off = True
            signal.pthread_kill(threading.main_thread().ident or 0, BREAK_OFF)


def end_process(card: Card) -> None:
    """End a replica's process and its children from a task on their node; a frozen process cannot do it itself."""
    there = NodeAffinitySchedulingStrategy(card.node, soft=False)
    _end_process.options(scheduling_strategy=there).remote(card.pid)


@ray.remote(num_cpus=0, max_retries=0)
def _end_process(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def _alive(node: str) -> bool:
    return any(entry["NodeID"] == node and entry["Alive"] for entry in ray.nodes())
