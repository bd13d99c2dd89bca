"""``popalign show``: pairs in the terminal, found among any number without reading the texts of the others."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from factory.errors import InputError, nearest
from factory.place import Place
from factory.run import Run
from factory.shard import parquet, shards
from factory.survey import SCORES
from factory.terminal import Terminal

# Columns from which two answers stand side by side; below, each would be narrower than a phone's screen.
WIDE = 100
COLOURS = {"kept": "green", "rejected": "yellow", "failed": "red"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which pairs: None or empty is any."""

    strategy: str | None = None
    status: str | None = None
    reason: str | None = None
    id: str | None = None  # the whole id, or how it begins
    text: str | None = None  # in prompt or answers, whatever the case

    def mask(self, rows: pa.Table) -> pa.ChunkedArray:
        """The rows that match in everything but the text; ``rows`` has the columns that are named here."""
        mask = pa.chunked_array([pa.repeat(True, rows.num_rows)])
        for column in ("strategy", "status", "reason"):
            value = getattr(self, column)
            if value is not None:
                mask = pc.and_(mask, pc.fill_null(pc.equal(rows[column], value), False))
        if self.id is not None:
            mask = pc.and_(mask, pc.starts_with(rows["pair_id"], self.id))
        return mask

    def says(self, row: dict[str, Any]) -> bool:
        """Whether the text is in the row."""
        if self.text is None:
            return True
        turns = itertools.chain(row["prompt"] or (), row["chosen"] or (), row["rejected"] or ())
        return any(self.text.casefold() in (turn["content"] or "").casefold() for turn in turns)


def find(
    pairs: Place, wanted: Wanted, number: int, *, offset: int = 0, seed: int | None = None
) -> list[dict[str, Any]]:
    """At most ``number`` pairs after the first ``offset``, in the order of the shards, or drawn at random by ``seed``.

    Row groups without a match are not read but for four short columns.
    """
    if seed is None:
        return list(itertools.islice(matches(pairs, wanted), offset, offset + number))

    def rank(row: dict[str, Any]) -> str:
        return hashlib.sha256(f"{seed}:{row['pair_id']}".encode()).hexdigest()

    return heapq.nsmallest(offset + number, matches(pairs, wanted), key=rank)[offset:]


def matches(pairs: Place, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """The pairs that match, in the order of the shards."""
    for place in shards(pairs):
        with parquet(place) as file:
            for group in range(file.num_row_groups):
                mask = wanted.mask(file.read_row_group(group, columns=["pair_id", "strategy", "status", "reason"]))
                if pc.any(mask).as_py():
                    rows = file.read_row_group(group).filter(mask).to_pylist()
                    yield from (row for row in rows if wanted.says(row))


def require_known(run: Run, wanted: Wanted) -> None:
    """Refuse a strategy or reason that the run has none of, by the nearest that it has.

    Raises:
        InputError: naming the option.
    """
    outcomes = run.manifest["pairs"]["strategies"]
    if wanted.strategy is not None and wanted.strategy not in outcomes:
        raise InputError(
            f"--strategy {wanted.strategy}: the run has no such strategy{nearest(wanted.strategy, outcomes)}"
        )
    reasons = {reason for o in outcomes.values() for part in ("rejected", "failed") for reason in o[part]}
    if wanted.reason is not None and wanted.reason not in reasons:
        raise InputError(f"--reason {wanted.reason}: no pair has it{nearest(wanted.reason, reasons)}")


def show_rows(terminal: Terminal, rows: list[dict[str, Any]], offset: int) -> None:
    """Each pair with its facts, its prompt and both answers, side by side where there is room."""
    width = terminal.console.width
    for number, row in enumerate(rows, offset + 1):
        terminal.console.print(_pair(row, number, width), soft_wrap=False)


def _pair(row: dict[str, Any], number: int, width: int) -> RenderableType:
    status = row["status"]
    title = Text.assemble(
        (f"{number}  ", "dim"), (visible(row["strategy"]), "bold"), "  ", (visible(status), COLOURS.get(status, ""))
    )
    if row["reason"]:
        title.append(f": {visible(row['reason'])}")
    return Group(Rule(title, align="left", style="dim"), _facts(row), _prompt(row), _sides(row, width), Text())


def _facts(row: dict[str, Any]) -> Text:
    parts = [row["pair_id"], f"split {row['split']}"]
    parts += [f"{name} {row[name]:+.2f}" for name in SCORES if isinstance(row.get(name), float)]
    parts += [f"judge {row['judge']}"] if row.get("judge") else []
    parts += [f"({row['judge_reason']})"] if row.get("judge_reason") else []
    return Text(visible(" · ".join(map(str, parts))), style="dim")


def _prompt(row: dict[str, Any]) -> RenderableType:
    turns = row["prompt"] or []
    lines = [visible(f"{turn['role']}: {turn['content']}" if len(turns) > 1 else turn["content"]) for turn in turns]
    return Panel(Text("\n".join(lines)), title="prompt", title_align="left", border_style="dim")


def _sides(row: dict[str, Any], width: int) -> RenderableType:
    sides = [_side(row, "chosen", "green"), _side(row, "rejected", "red")]
    if width < WIDE:
        return Group(*sides)
    table = Table.grid(expand=True)
    table.add_column(ratio=1)
    table.add_column(ratio=1)
    table.add_row(*sides)
    return table


def _side(row: dict[str, Any], name: str, colour: str) -> Panel:
    answer = row[name] or []
    tokens = row[f"{name}_tokens"]
    facts = f"{name} · {row[f'{name}_variant']}" + ("" if tokens is None else f" · {tokens} tokens")
    text = (
        Text(visible("\n".join(turn["content"] or "" for turn in answer)))
        if answer
        else Text("no completion", "italic")
    )
    return Panel(text, title=Text(visible(facts)), title_align="left", border_style=colour)


def visible(text: str) -> str:
    """Text that a terminal shows and does not obey: control and direction characters are spelled out."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else f"⟦U+{ord(c):04X}⟧" for c in text
    )
