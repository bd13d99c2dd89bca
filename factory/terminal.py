"""What a user sees: our own lines, progress with rate and time left, and nothing that a library prints."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.progress import Task as RichTask
from rich.text import Text

from factory.board import View

LINE_EVERY_S = 30.0


class Terminal:
    """The user's screen. While open, what libraries print to the process's own outputs goes to a log file."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        self.console = Console(file=self._out, quiet=quiet, highlight=False, soft_wrap=True)
        self._log: Path | None = None

    def redirect(self, log: Path) -> None:
        """Send the process's own standard outputs to a file from here on."""
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)

    @property
    def log(self) -> Path | None:
        """Where the output of libraries goes, once it is redirected."""
        return self._log

    def say(self, text: str = "") -> None:
        """One line, as it is (no markup)."""
        self.console.print(text, markup=False)

    @contextmanager
    def progress(self, title: str, total: float | None, unit: str) -> Iterator[Meter]:
        """A step with a known or unknown amount of work."""
        meter: Meter = (
            Bar(self.console, title, total, unit) if self.console.is_terminal else Lines(self, title, total, unit)
        )
        with meter:
            yield meter


class Meter:
    """How far a step is: shown on a terminal as a bar, elsewhere as a line every 30 s."""

    def update(self, done: float, detail: str = "", view: View | None = None) -> None:
        """How far the step is; ``detail`` is shown beside it, ``view`` by variant."""
        raise AssertionError("a meter shows something")

    def say(self, text: str) -> None:
        """A line that stays."""
        raise AssertionError("a meter shows something")

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: RichTask) -> Text:
        left = f", {duration(task.time_remaining)} left" if task.time_remaining is not None else ""
        rate = f"{task.speed:,.1f} {self._unit}/s" if task.speed else ""
        return Text(f"{rate}{left}", style="cyan")


class Bar(Meter):
    """For a terminal."""

    def __init__(self, console: Console, title: str, total: float | None, unit: str) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(unit),
            TextColumn("{task.fields[detail]}", style="dim"),
            console=console,
            speed_estimate_period=120,
        )
        self._total = math.inf if total is None else total  # what is made again after a fault is no progress
        self._task = self._progress.add_task(title, total=total, detail="")

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False)

    def update(self, done: float, detail: str = "", view: View | None = None) -> None:
        self._progress.update(self._task, completed=min(done, self._total), detail=detail)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class Lines(Meter):
    """For logs and pipes: a line at the start, every 30 s, and at the end."""

    def __init__(self, terminal: Terminal, title: str, total: float | None, unit: str) -> None:
        self._terminal, self._title, self._total, self._unit = terminal, title, total, unit
        self._started = time.monotonic()
        self._said = self._started
        self._done = self._first = 0.0
        self._first_at: float | None = None
        self._detail = ""

    def say(self, text: str) -> None:
        self._terminal.say(text)

    def update(self, done: float, detail: str = "", view: View | None = None) -> None:
        now = time.monotonic()
        if self._first_at is None and done:
            self._first, self._first_at = done, now
        self._done, self._detail = min(done, math.inf if self._total is None else self._total), detail
        if now - self._said >= LINE_EVERY_S:
            self._said = now
            self._terminal.say(self._line(now))

    def _line(self, now: float) -> str:
        total = f"/{self._total:g}" if self._total is not None else ""
        parts = [f"{self._title}: {self._done:g}{total} {self._unit}"]
        if self._first_at is not None and now > self._first_at and self._done > self._first:
            rate = (self._done - self._first) / (now - self._first_at)
            parts.append(f"{rate:,.1f} {self._unit}/s")
            if self._total is not None:
                parts.append(f"{duration((self._total - self._done) / rate)} left")
        return ", ".join([*parts, *filter(None, [self._detail])])

    def __enter__(self) -> Lines:
        self._terminal.say(f"{self._title} ...")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = time.monotonic()
        if kind is None:
            self._terminal.say(f"{self._line(now)}, took {duration(now - self._started)}")


def duration(seconds: float) -> str:
    """``7 s``, ``3 min 5 s``, ``2 h 10 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
