"""The commands with near-duplicates and ``--decontaminate``: what is set aside is counted, listed and not lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from running import generations, popalign, scripted

from factory.errors import InputError
from factory.place import Place
from factory.prompt import check_sources, stage
from factory.recipe import Prompts

RIDDLE = "A farmer has seventeen sheep and all but nine of them die. How many are left?"
STORY = "Write a short story about an old lighthouse keeper who finds a letter in a bottle and answers it every night"


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def listed(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_stage_contaminated_prompt_is_listed_with_file_line_and_ngram(tmp_path: Path) -> None:
    dialogue = [{"role": "user", "content": RIDDLE}, {"role": "assistant", "content": "8"}]
    follow_up = [*dialogue, {"role": "user", "content": "Are you sure?"}]
    prompts = ["Name a river.", f"Solve: {RIDDLE.upper()}", follow_up, "Name a river."]
    source = lines(tmp_path / "source.jsonl", [{"prompt": prompt} for prompt in prompts])
    # What a system message of the evaluation says for all of them is no overlap.
    turns = [{"role": "system", "content": "Name a river."}, {"role": "user", "content": RIDDLE}]
    evaluation = lines(tmp_path / "eval.jsonl", [{"question": "Who?"}, {"messages": turns}])
    settings = Prompts(source=source, decontaminate=[evaluation])
    staged, _ = stage(settings, Place.of(tmp_path / "out"), count_tokens=lambda prompt: 1, metadata={})
    assert staged.summary() == {"read": 4, "ready": 1, "duplicates": 1, "set_aside": {"contaminated": 2}}
    found = {"reason": "contaminated", "evaluation": f"{evaluation}:2", "share": 1.0}
    ngram = "a farmer has seventeen sheep and all but"
    expected = [{"source": f"{source}:{n}", **found, "ngram": ngram} for n in (2, 3)]
    assert listed(tmp_path / "out" / "set_aside.jsonl") == expected


def test_stage_all_contaminated_is_refused(tmp_path: Path) -> None:
    source = lines(tmp_path / "source.jsonl", [{"prompt": RIDDLE}])
    settings = Prompts(source=source, decontaminate=[source])
    with pytest.raises(InputError, match=r"no usable prompt among 1 read \(\{'contaminated': 1\}\)"):
        stage(settings, Place.of(tmp_path / "out"), count_tokens=lambda prompt: 1, metadata={})


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ("missing.jsonl", "prompts.decontaminate: missing.jsonl does not exist"),
        ("eval.txt", "prompts.decontaminate: eval.txt: unknown format"),
        ("other.jsonl", r"prompts.decontaminate: other.jsonl:1: no prompt column .* it has: input; rename one"),
    ],
)
def test_check_sources_bad_evaluation_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluation: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eval.txt").write_text(RIDDLE)
    lines(tmp_path / "other.jsonl", [{"input": RIDDLE}])
    with pytest.raises(InputError, match=said):
        check_sources(Prompts(source="builtin:demo", decontaminate=[evaluation]))


def test_generate_sets_near_duplicates_and_contaminated_aside_and_the_books_balance(tmp_path: Path) -> None:
    recipe = scripted(tmp_path, 5, extra=[STORY, f"Solve: {RIDDLE}", STORY.replace("every", "each"), STORY.upper()])
    evaluation = lines(tmp_path / "eval.jsonl", [{"prompt": RIDDLE}])
    near = ["--set", "prompts.near_duplicates=0.7"]
    planned = popalign("plan", str(recipe), *near, "--decontaminate", evaluation)
    assert planned.returncode == 0, planned.stderr
    done = popalign("generate", str(recipe), *near, "--decontaminate", evaluation, "--cpus", "2")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    prompts = json.loads((run / "manifest.json").read_text())["prompts"]
    # 9 = 6 + 1 + 2
    assert (prompts["read"], prompts["ready"]) == (9, 6)
    assert prompts["set_aside"] == {"contaminated": 1, "near_duplicate": 2}
    source = tmp_path / "prompts.jsonl"
    found = [(row["source"], row["reason"]) for row in listed(run / "prompts" / prompts["set"] / "set_aside.jsonl")]
    assert found == [
        (f"{source}:7", "contaminated"),
        (f"{source}:8", "near_duplicate"),
        (f"{source}:9", "near_duplicate"),
    ]
    assert len(generations(run)) == 6
    done = popalign("status", str(run), "--verify")
    assert done.returncode == 0, done.stderr
    assert "6 ready of 9, 1 set aside (contaminated), 2 set aside (near_duplicate)" in done.stdout
    again = popalign("generate", str(run / "recipe.yaml"), "--cpus", "2")
    assert again.returncode == 0, again.stderr
    other = popalign("generate", str(recipe), *near, "--cpus", "2")
    assert other.returncode == 2
    assert "prompts.decontaminate was" in other.stderr
