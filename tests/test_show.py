"""Pairs in the terminal: which are found, how they stand, and that hostile text is shown and not obeyed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from paired import made_up, run_of, turn
from running import popalign

from factory.errors import InputError
from factory.run import Run
from factory.show import Wanted, find, require_known, show_rows, visible
from factory.terminal import Terminal


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return made_up(60, ["refine", "prefix"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Run:
    return run_of(tmp_path_factory.mktemp("show") / "run", rows, per_shard=50)


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [row["pair_id"] for row in found]


def matching(run: Run, wanted: Wanted, number: int = 1000, **options: Any) -> list[dict[str, Any]]:
    return find(run.current("pairs", ""), wanted, number, **options)


def test_find_by_strategy_status_and_reason_in_the_order_of_the_files(run: Run, rows: list[dict[str, Any]]) -> None:
    found = matching(run, Wanted(strategy="refine", status="rejected", reason="leak"))
    assert found and found == [r for r in rows if r["strategy"] == "refine" and r["reason"] == "leak"]


def test_find_nothing_asked_is_all_and_number_and_offset_cut_it(run: Run, rows: list[dict[str, Any]]) -> None:
    assert matching(run, Wanted()) == rows
    assert matching(run, Wanted(status="kept"), 3, offset=2) == [r for r in rows if r["status"] == "kept"][2:5]
    assert matching(run, Wanted(), 5, offset=118) == rows[118:]


def test_find_by_id_or_its_beginning(run: Run, rows: list[dict[str, Any]]) -> None:
    assert matching(run, Wanted(id=rows[77]["pair_id"])) == [rows[77]]
    assert rows[77] in matching(run, Wanted(id=rows[77]["pair_id"][:6]))
    assert matching(run, Wanted(id="not an id")) == []


def test_find_by_text_whatever_the_case(run: Run, rows: list[dict[str, Any]]) -> None:
    assert matching(run, Wanted(text="SUBJECT 7.")) == rows[14:16]
    assert len(matching(run, Wanted(text="mill"))) == sum("mill" in str(r["chosen"]) + str(r["rejected"]) for r in rows)


def test_find_by_seed_draws_the_same_again_and_others_by_another(run: Run) -> None:
    first, again, other = (ids(matching(run, Wanted(), 10, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other and len(set(first)) == 10
    more = ids(matching(run, Wanted(), 10, seed=1, offset=10))
    assert not set(first) & set(more), "an offset goes on in the same draw"


def test_unknown_names_are_refused_with_the_nearest(run: Run) -> None:
    with pytest.raises(InputError, match="did you mean 'refine'"):
        require_known(run, Wanted(strategy="refien"))
    with pytest.raises(InputError, match="did you mean 'leak'"):
        require_known(run, Wanted(reason="leek"))


def shown(rows: list[dict[str, Any]], width: int, capfd: pytest.CaptureFixture[str]) -> str:
    terminal = Terminal()
    terminal.console.width = width
    show_rows(terminal, rows, 0)
    return capfd.readouterr().out


def sides(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {**rows[0], "status": "rejected", "reason": "leak", "chosen_tokens": 3, "rejected_tokens": 4} | {
        "prompt": turn("user", "Name a river."),
        "chosen": turn("assistant", "The Rhine."),
        "rejected": turn("assistant", "[bold]No[/bold]."),
    }


def test_show_puts_answers_side_by_side_where_there_is_room(
    rows: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    text = shown([sides(rows)], 120, capfd)
    assert any("The Rhine." in line and "[bold]No[/bold]." in line for line in text.splitlines())
    assert "rejected: leak" in text and "chosen · strong · 3 tokens" in text


@pytest.mark.parametrize("width", [40, 80])
def test_show_puts_answers_below_each_other_where_there_is_none(
    rows: list[dict[str, Any]], width: int, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = shown([sides(rows)], width, capfd).splitlines()
    chosen, rejected = (next(i for i, line in enumerate(lines) if what in line) for what in ("Rhine", "[bold]"))
    assert chosen < rejected and max(map(len, lines)) <= width


def test_show_a_failed_pair_says_that_there_is_no_completion(
    rows: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    failed = next(row for row in rows if row["status"] == "failed")
    assert "no completion" in shown([failed], 100, capfd)


def test_visible_leaves_letters_and_spells_out_what_a_terminal_would_obey() -> None:
    assert visible("Grüße 日本 👍\n\tend") == "Grüße 日本 👍\n\tend"
    assert visible("\x1b[2J\x07\r\u202e\x9b") == "⟦U+001B⟧[2J⟦U+0007⟧⟦U+000D⟧⟦U+202E⟧⟦U+009B⟧"


def test_show_command_lets_no_escape_sequence_through(tmp_path: Path) -> None:
    rows = made_up(3, ["refine"])
    for row in rows:
        row.update(chosen=turn("assistant", "\x1b]0;owned\x07 [red]text[/red]"), chosen_variant="\x1b[2J")
    run = run_of(tmp_path / "run", rows)
    done = popalign("show", str(run.path), "--strategy", "refine", "--number", "2")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and "\x07" not in done.stdout and "[red]text[/red]" in done.stdout
    done = popalign("show", str(run.path), "--number", "2", "--offset", "1", "--json")
    assert "\x1b" not in done.stdout
    assert [json.loads(line)["pair_id"] for line in done.stdout.splitlines()] == ids(rows[1:])
    done = popalign("show", str(run.path), "--status", "odd")
    assert done.returncode == 2
