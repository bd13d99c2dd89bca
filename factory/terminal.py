"""What a user sees: our own lines, progress with rate and time left, and nothing that a library prints."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

from factory.figure import Figures, Pace

LINE_EVERY_S = 30.0
UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}


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

    def __init__(self, total: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.pace = Pace(total)
        self._clock = clock

    def update(self, done: float, detail: str = "", figures: Mapping[str, Figures] | None = None) -> None:
        """How far the step is; ``detail`` is shown beside it, ``figures`` by variant."""
        self.pace.update(done, self._clock())
        self._show(detail, figures)

    def say(self, text: str) -> None:
        """A line that stays."""
        raise AssertionError("a meter shows something")

    def _show(self, detail: str, figures: Mapping[str, Figures] | None) -> None:
        raise AssertionError("a meter shows something")

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Bar(Meter):
    """For a terminal: a bar, and below it a table of the variants."""

    def __init__(self, console: Console, title: str, total: float | None, unit: str) -> None:
        super().__init__(total)
        self._screen = _Screen(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=min(24, max(4, console.width - 72))),
            MofNCompleteColumn(),
            _Rate(self.pace, unit),
            TextColumn("{task.fields[detail]}", style="dim"),
            console=console,
        )
        self._task = self._screen.add_task(title, total=total, detail="")

    def say(self, text: str) -> None:
        self._screen.console.print(text, markup=False)

    def _show(self, detail: str, figures: Mapping[str, Figures] | None) -> None:
        if figures is not None:
            self._screen.figures = figures
        self._screen.update(self._task, completed=self.pace.done, detail=detail)

    def __enter__(self) -> Bar:
        self._screen.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._screen.stop()


class _Rate(ProgressColumn):
    def __init__(self, pace: Pace, unit: str) -> None:
        super().__init__()
        self._pace, self._unit = pace, unit

    def render(self, task: RichTask) -> Text:
        return Text(", ".join(_pace(self._pace, self._unit)), style="cyan")


class _Screen(Progress):
    """Rich's bar with the table of variants below it."""

    def __init__(self, *columns: ProgressColumn, console: Console) -> None:
        self.figures: Mapping[str, Figures] = {}
        super().__init__(*columns, console=console)

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.figures:
            yield variants_table(self.figures)


def variants_table(figures: Mapping[str, Figures]) -> Table:
    """One row per variant, in 80 columns; only a variant's name is ever cut."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("\nvariant", overflow="ellipsis")
    heads = (
        "\nprompts",
        "comple-\ntions",
        "tokens\nin/s",
        "tokens\nout/s",
        "\nqueue",
        "\nreplicas",
        "cache\nhits",
        "\nfailed",
    )
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for name, figure in figures.items():
        table.add_row(
            Text(name),
            f"{_short(figure.prompts)}/{_short(figure.wanted)}",
            _short(figure.completions),
            _short(figure.tokens_in),
            _short(figure.tokens_out),
            _short(figure.queue),
            _replicas(figure),
            _share(figure.cache_hits),
            Text(_short(figure.failed), style="red" if figure.failed else ""),
        )
    return table


class Lines(Meter):
    """For logs and pipes: a line at the start, every 30 s with one for each variant below it, and at the end."""

    def __init__(
        self,
        terminal: Terminal,
        title: str,
        total: float | None,
        unit: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(total, clock)
        self._terminal, self._title, self._unit = terminal, title, unit
        self._started = self._said = clock()
        self._detail = ""

    def say(self, text: str) -> None:
        self._terminal.say(text)

    def _show(self, detail: str, figures: Mapping[str, Figures] | None) -> None:
        self._detail = detail
        now = self._clock()
        if now - self._said >= LINE_EVERY_S:
            self._said = now
            self._terminal.say(self._line(*_pace(self.pace, self._unit)))
            for name, figure in (figures or {}).items():
                self._terminal.say(f"  {variant_line(name, figure)}")

    def _line(self, *more: str) -> str:
        total = "" if self.pace.total is None else f"/{self.pace.total:,.0f}"
        return ", ".join(
            filter(None, [f"{self._title}: {self.pace.done:,.0f}{total} {self._unit}", *more, self._detail])
        )

    def __enter__(self) -> Lines:
        self._terminal.say(f"{self._title} ...")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._terminal.say(self._line(f"took {duration(self._clock() - self._started)}"))


def variant_line(name: str, figure: Figures) -> str:
    """The table's row for a log."""
    parts = [
        f"{name}: {figure.prompts:,}/{figure.wanted:,} prompts",
        f"{figure.completions:,} completions",
        f"{figure.tokens_in:,.0f} tokens/s in",
        f"{figure.tokens_out:,.0f} out",
        f"queue {figure.queue:,}",
        f"replicas {_replicas(figure)}",
        f"cache hits {_share(figure.cache_hits)}",
        f"failed {figure.failed:,}",
    ]
    return ", ".join(parts)


def _pace(pace: Pace, unit: str) -> list[str]:
    rate = [f"{pace.rate:,.1f} {unit}/s"] if pace.rate else []
    return [*rate, f"{duration(pace.left)} left"] if pace.left else rate


def _replicas(figure: Figures) -> str:
    """``2``, or ``1 (+1)`` while one starts."""
    return f"{figure.serving} (+{figure.starting})" if figure.starting else str(figure.serving)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _short(number: float) -> str:
    """A number in at most six characters: ``98,765``, ``123k``, ``1.23M``."""
    if number < 99_999.5:
        return f"{number:,.0f}"
    unit, size = next(((unit, size) for unit, size in UNITS.items() if number < 999.5 * size), ("T", 1e12))
    return f"{number / size:.3g}{unit}"


def duration(seconds: float) -> str:
    """``7 s``, ``3 min 5 s``, ``2 h 10 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
