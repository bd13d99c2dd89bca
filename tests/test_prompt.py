"""Staging: prompts from files of every format, what is set aside, what is dropped, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import factory.prompt
from factory.errors import InputError
from factory.place import Place
from factory.prompt import Seen, Staged, check_sources, parse, prompt_id, split, stage
from factory.recipe import Prompts
from factory.shard import PROMPT, shards
from strategies.contrast import Message

TEXTS = ["Name a river.", "Why is ice slippery?\nIn two lines, please.", 'Say "yes", or no.', "Größe: 5 €, 日本"]
DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a river."},
    {"role": "assistant", "content": "Rhine."},
    {"role": "user", "content": "And a lake?"},
]


def words(prompt: tuple[Message, ...]) -> int:
    """A tokenizer of our own: words."""
    return sum(len(str(message.content).split()) for message in prompt)


def staged(folder: Path, source: Any, **settings: Any) -> Staged:
    place = Place.of(folder / "prompts")
    return stage(Prompts(source=source, **settings), place, count_tokens=words, metadata={"made.by": "a test"})[0]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in shards(Place.of(folder / "prompts")) for row in pq.read_table(path).to_pylist()]


def texts(folder: Path) -> list[str]:
    return [row["prompt"][-1]["content"] for row in rows(folder)]


def set_aside(folder: Path) -> list[dict[str, str]]:
    lines = (folder / "prompts" / "set_aside.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def lines_file(path: Path, contents: Iterable[Any], column: str = "prompt") -> str:
    path.write_text("".join(json.dumps({column: content}) + "\n" for content in contents), encoding="utf-8")
    return str(path)


def file(path: Path, contents: list[str], column: str = "prompt") -> str:
    """The same prompts as a file of the format that the suffix names."""
    if path.suffix == ".jsonl":
        return lines_file(path, contents, column)
    if path.suffix == ".json":
        path.write_text(json.dumps([{column: text} for text in contents], ensure_ascii=False), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"id": list(range(len(contents))), column: contents}), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as out:
            csv.writer(out).writerows([["id", column], *([str(i), text] for i, text in enumerate(contents))])
    return str(path)


def mistake(folder: Path, source: Any, **settings: Any) -> str:
    """The message of a staging that fails and leaves no set behind."""
    with pytest.raises(InputError) as caught:
        staged(folder, source, **settings)
    assert not (folder / "prompts").exists()
    text = str(caught.value)
    assert text.startswith("prompts.source: ") and "\n" not in text
    return text


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_stage_every_format_gives_the_prompts_in_their_order(suffix: str, tmp_path: Path) -> None:
    path = file(tmp_path / f"in{suffix}", TEXTS)
    assert staged(tmp_path, path).summary() == {"read": 4, "ready": 4, "duplicates": 0, "set_aside": {}}
    assert texts(tmp_path) == TEXTS
    assert [row["prompt"] for row in rows(tmp_path)] == [[{"role": "user", "content": text}] for text in TEXTS]
    assert set_aside(tmp_path) == []


def test_stage_ids_are_equal_across_formats(tmp_path: Path) -> None:
    ids = []
    for suffix in (".jsonl", ".json", ".parquet", ".csv"):
        folder = tmp_path / suffix[1:]
        folder.mkdir()
        staged(folder, file(folder / f"in{suffix}", TEXTS))
        ids.append([row["prompt_id"] for row in rows(folder)])
    assert ids[0] == ids[1] == ids[2] == ids[3]
    assert len(set(ids[0])) == 4
    assert ids[0] == [prompt_id((Message("user", text),)) for text in TEXTS]


def test_stage_same_prompts_in_several_formats_are_duplicates(tmp_path: Path) -> None:
    sources = [file(tmp_path / f"in{suffix}", TEXTS) for suffix in (".jsonl", ".json", ".parquet", ".csv")]
    assert staged(tmp_path, sources).summary() == {"read": 16, "ready": 4, "duplicates": 12, "set_aside": {}}
    assert texts(tmp_path) == TEXTS


def test_stage_rows_say_where_they_come_from(tmp_path: Path) -> None:
    jsonl = tmp_path / "in.jsonl"
    jsonl.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n', encoding="utf-8")  # the empty line counts
    csv_path = file(tmp_path / "in.csv", ["c", "d"])
    staged(tmp_path, [str(jsonl), csv_path])
    assert [row["source"] for row in rows(tmp_path)] == [f"{jsonl}:1", f"{jsonl}:3", f"{csv_path}:2", f"{csv_path}:3"]


def test_stage_shard_has_schema_metadata_and_row_groups(tmp_path: Path) -> None:
    staged(tmp_path, lines_file(tmp_path / "in.jsonl", "abcde"))
    (path,) = shards(Place.of(tmp_path / "prompts"))
    with pq.ParquetFile(path) as parquet:
        assert parquet.schema_arrow.remove_metadata() == PROMPT
        assert parquet.schema_arrow.metadata[b"made.by"] == b"a test"
        groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    assert groups == [1, 1, 1, 1, 1]  # so few are cut as finely as can be


def test_stage_many_prompts_fill_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory.prompt, "PROMPTS_AT_ONCE", 3)
    monkeypatch.setattr(factory.prompt, "TARGET_BYTES", 1)
    assert staged(tmp_path, lines_file(tmp_path / "in.jsonl", "abcdefgh")).ready == 8
    assert [pq.read_metadata(path).num_rows for path in shards(Place.of(tmp_path / "prompts"))] == [3, 3, 2]
    assert "".join(texts(tmp_path)) == "abcdefgh"


def test_stage_shards_are_filled_to_their_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory.prompt, "PROMPTS_AT_ONCE", 3)
    staged(tmp_path, lines_file(tmp_path / "in.jsonl", "abcdefgh"))
    assert [pq.read_metadata(path).num_rows for path in shards(Place.of(tmp_path / "prompts"))] == [8]


def test_stage_glob_takes_files_in_their_order(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        lines_file(tmp_path / f"{name}.jsonl", [f"from {name}"])
    lines_file(tmp_path / "other.json.txt", ["not this"])
    staged(tmp_path, str(tmp_path / "*.jsonl"))
    assert texts(tmp_path) == ["from a", "from b", "from c"]


def test_stage_recursive_glob_looks_below(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    lines_file(tmp_path / "in" / "deep" / "a.jsonl", ["deep"])
    staged(tmp_path, str(tmp_path / "in" / "**" / "*.jsonl"))
    assert texts(tmp_path) == ["deep"]


def test_stage_several_sources_keep_their_order(tmp_path: Path) -> None:
    second = lines_file(tmp_path / "a.jsonl", ["second"])
    first = file(tmp_path / "b.csv", ["first"])
    staged(tmp_path, [first, second, "builtin:demo"], limit=3)
    assert texts(tmp_path)[:2] == ["first", "second"]


def test_stage_built_in_set_has_64_prompts(tmp_path: Path) -> None:
    counts = staged(tmp_path, "builtin:demo").summary()
    assert counts == {"read": 64, "ready": 64, "duplicates": 0, "set_aside": {}}


@pytest.mark.parametrize("column", ["prompt", "messages", "instruction", "question", "text"])
def test_stage_usual_columns_are_found(column: str, tmp_path: Path) -> None:
    staged(tmp_path, lines_file(tmp_path / "in.jsonl", ["x"], column))
    assert texts(tmp_path) == ["x"]


def test_stage_first_of_the_usual_columns_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"text": "no", "question": "no", "prompt": "yes"}), encoding="utf-8")
    staged(tmp_path, str(path))
    assert texts(tmp_path) == ["yes"]


def test_stage_named_column_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"prompt": "no", "ask": "yes"}), encoding="utf-8")
    staged(tmp_path, str(path), column="ask")
    assert texts(tmp_path) == ["yes"]


def test_stage_csv_with_byte_order_mark_is_read(tmp_path: Path) -> None:
    """Spreadsheets write one at the beginning of a CSV file."""
    path = tmp_path / "in.csv"
    path.write_text("prompt\nName a river.\n", encoding="utf-8-sig")
    staged(tmp_path, str(path))
    assert texts(tmp_path) == ["Name a river."]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_stage_dialogue_keeps_its_turns(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"in{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"messages": [DIALOGUE]}), path)
    else:
        content: Any = {"messages": DIALOGUE}
        path.write_text(json.dumps([content] if suffix == ".json" else content), encoding="utf-8")
    staged(tmp_path, str(path))
    (row,) = rows(tmp_path)
    assert row["prompt"] == DIALOGUE
    assert row["prompt_id"] == prompt_id(tuple(Message(turn["role"], turn["content"]) for turn in DIALOGUE))


def test_stage_text_and_one_user_turn_are_the_same_prompt(tmp_path: Path) -> None:
    contents = ["Name a river.", [{"role": "user", "content": "Name a river."}]]
    assert staged(tmp_path, lines_file(tmp_path / "in.jsonl", contents)).duplicates == 1


def test_stage_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    counts = staged(tmp_path, lines_file(tmp_path / "in.jsonl", ["a", "b", "a", "a", "B"])).summary()
    assert counts == {"read": 5, "ready": 3, "duplicates": 2, "set_aside": {}}  # 5 = 3 + 2
    assert texts(tmp_path) == ["a", "b", "B"]


def test_stage_empty_prompts_are_counted_and_listed(tmp_path: Path) -> None:
    path = lines_file(tmp_path / "in.jsonl", ["a", "", " \n", None, [], "b"])
    counts = staged(tmp_path, path).summary()
    assert counts == {"read": 6, "ready": 2, "duplicates": 0, "set_aside": {"empty": 4}}
    assert set_aside(tmp_path) == [{"source": f"{path}:{n}", "reason": "empty"} for n in (2, 3, 4, 5)]


def test_stage_prompt_over_the_limit_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    path = lines_file(tmp_path / "in.jsonl", ["one two three", "one two three four", "one"])
    counts = staged(tmp_path, path, max_tokens=3)  # three words are not over three
    assert counts.summary() == {"read": 3, "ready": 2, "duplicates": 0, "set_aside": {"over_input_limit": 1}}
    assert texts(tmp_path) == ["one two three", "one"]
    assert set_aside(tmp_path) == [{"source": f"{path}:2", "reason": "over_input_limit"}]


def test_stage_all_reasons_add_up_to_what_was_read(tmp_path: Path) -> None:
    contents = ["a", "a", "", "one two three four", DIALOGUE[:3], [{"who": "me"}], 5, "b"]
    counts = staged(tmp_path, lines_file(tmp_path / "in.jsonl", contents), max_tokens=3)
    assert counts.set_aside == {
        "empty": 1,
        "over_input_limit": 1,
        "no_user_turn_at_the_end": 1,
        "not_a_conversation": 2,
    }
    assert counts.read == 8 == counts.ready + counts.duplicates + sum(counts.set_aside.values())
    assert len(set_aside(tmp_path)) == 5


def test_stage_text_that_is_no_unicode_is_set_aside(tmp_path: Path) -> None:
    """Half of an emoji, as cutting a string at a length leaves it; JSON can write it, UTF-8 cannot."""
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "half \\ud83d"}\n{"prompt": "whole"}\n', encoding="utf-8")
    counts = staged(tmp_path, str(path))
    assert (counts.read, counts.ready, sum(counts.set_aside.values())) == (2, 1, 1)
    assert texts(tmp_path) == ["whole"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("x", None),
        (DIALOGUE, None),
        ("", "empty"),
        (None, "empty"),
        ([], "empty"),
        ([{"role": "user", "content": "  "}], "empty"),
        (DIALOGUE[:3], "no_user_turn_at_the_end"),
        ([{"role": "system", "content": "x"}], "no_user_turn_at_the_end"),
        ([{"role": "tool", "content": "x"}], "not_a_conversation"),
        ([{"role": "user", "content": None}], "not_a_conversation"),
        ([{"role": "user"}], "not_a_conversation"),
        (["x"], "not_a_conversation"),
        ({"role": "user", "content": "x"}, "not_a_conversation"),
        (5, "not_a_conversation"),
        (True, "not_a_conversation"),
    ],
)
def test_parse_content_gives_turns_or_a_reason(content: Any, reason: str | None) -> None:
    assert parse(content)[1] == reason


@pytest.mark.parametrize("limit", [1, 3, 5, 9])
def test_stage_limit_takes_the_first(limit: int, tmp_path: Path) -> None:
    sources = [lines_file(tmp_path / "a.jsonl", "abc"), lines_file(tmp_path / "b.jsonl", "de")]
    counts = staged(tmp_path, sources, limit=limit)
    assert counts.read == counts.ready == min(limit, 5)
    assert "".join(texts(tmp_path)) == "abcde"[:limit]


def test_split_is_the_prompts_own_and_does_not_change(tmp_path: Path) -> None:
    contents = [f"Prompt {i}" for i in range(50)]
    sides = []
    for name, ordered in (("a", contents), ("b", contents[::-1])):
        (tmp_path / name).mkdir()
        staged(tmp_path / name, lines_file(tmp_path / name / "in.jsonl", ordered), heldout=0.3)
        sides.append({row["prompt_id"]: row["split"] for row in rows(tmp_path / name)})
    assert sides[0] == sides[1]
    assert set(sides[0].values()) == {"train", "heldout"}


@pytest.mark.parametrize("heldout", [0.0, 0.1, 0.5])
def test_split_is_close_to_the_share(heldout: float) -> None:
    ids = [prompt_id((Message("user", f"Prompt {i}"),)) for i in range(2000)]
    found = sum(split(identity, heldout) == "heldout" for identity in ids) / 2000
    # Four standard deviations of a share of 2000: 4 x sqrt(0.5 x 0.5 / 2000) = 0.045 at most.
    assert abs(found - heldout) <= (0.045 if heldout else 0)


def test_split_larger_share_keeps_what_was_held_out() -> None:
    ids = [prompt_id((Message("user", f"Prompt {i}"),)) for i in range(300)]
    held = [{i for i in ids if split(i, share) == "heldout"} for share in (0.1, 0.3)]
    assert held[0] < held[1]


def test_prompt_id_is_the_same_in_every_process() -> None:
    # Written down once: the split of every stored run hangs on it.
    assert prompt_id((Message("user", "Name a river."),)) == "a5316a703e09fdf0bd302c9b2a72bede"


def test_prompt_id_knows_roles_and_turns() -> None:
    one = (Message("user", "ab"),)
    assert (
        len({prompt_id(p) for p in (one, (Message("system", "ab"),), (Message("user", "a"), Message("user", "b")))})
        == 3
    )


# What is refused.


def test_stage_missing_file_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "none.jsonl")
    assert mistake(tmp_path, path) == f"prompts.source: {path} does not exist"


def test_stage_missing_second_file_is_found_before_anything_is_read(tmp_path: Path) -> None:
    first, second = lines_file(tmp_path / "a.jsonl", ["a"]), str(tmp_path / "none.jsonl")
    assert mistake(tmp_path, [first, second], limit=1) == f"prompts.source: {second} does not exist"


def test_stage_directory_is_refused_with_a_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "in.jsonl"
    folder.mkdir()
    assert mistake(tmp_path, str(folder)) == f"prompts.source: {folder} is a directory; name files, such as DIR/*.jsonl"


def test_stage_glob_without_a_match_is_named(tmp_path: Path) -> None:
    pattern = str(tmp_path / "*.jsonl")
    assert mistake(tmp_path, pattern) == f"prompts.source: no file matches {pattern}"


def test_stage_unknown_format_is_named_with_the_known(tmp_path: Path) -> None:
    path = tmp_path / "in.xlsx"
    path.write_text("x", encoding="utf-8")
    assert mistake(tmp_path, str(path)) == (
        f"prompts.source: {path}: unknown format; known: .jsonl, .json, .parquet, .csv"
    )


def test_stage_unknown_built_in_set_is_named(tmp_path: Path) -> None:
    assert "no built-in set 'builtin:dmeo'; there is builtin:demo" in mistake(tmp_path, "builtin:dmeo")


def test_stage_bad_json_line_is_named_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "b"\n', encoding="utf-8")
    text = mistake(tmp_path, str(path))
    assert text.startswith(f"prompts.source: {path}:3: not JSON (") and '{"prompt": "b"' in text


def test_stage_bad_json_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    path.write_text('[{"prompt": "a"},\n{"prompt": }]', encoding="utf-8")
    assert mistake(tmp_path, str(path)).startswith(f"prompts.source: {path}:2: not JSON (")


def test_stage_json_that_is_no_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    path.write_text('{"prompt": "a"}', encoding="utf-8")
    assert mistake(tmp_path, str(path)) == f"prompts.source: {path}: expected a list of rows, found dict"


@pytest.mark.parametrize("row", ['"text"', "5", "[1, 2]", "null"])
def test_stage_row_that_is_no_object_is_refused(row: str, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n{row}\n', encoding="utf-8")
    assert f"{path}:2: expected an object with a prompt column" in mistake(tmp_path, str(path))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_stage_without_a_prompt_column_lists_the_columns(suffix: str, tmp_path: Path) -> None:
    text = mistake(tmp_path, file(tmp_path / f"in{suffix}", ["a"], column="ask"))
    assert "no prompt column (prompt, messages, instruction, question, text)" in text
    assert "it has: " in text and "ask" in text and "prompts.column" in text


def test_stage_without_the_named_column_lists_the_columns(tmp_path: Path) -> None:
    text = mistake(tmp_path, lines_file(tmp_path / "in.jsonl", ["a"]), column="ask")
    assert "no column 'ask'; it has: prompt" in text


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_stage_file_that_is_not_utf8_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"in{suffix}"
    path.write_bytes('[{"prompt": "caf\xe9"}]'.encode("latin-1"))
    assert f"{path} is not UTF-8 text" in mistake(tmp_path, str(path))


def test_stage_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    path.write_text("no parquet", encoding="utf-8")
    assert f"cannot read {path}" in mistake(tmp_path, str(path))


@pytest.mark.parametrize("contents", [[], ["", " "]])
def test_stage_nothing_usable_is_refused(contents: list[str], tmp_path: Path) -> None:
    assert "no usable prompt" in mistake(tmp_path, lines_file(tmp_path / "in.jsonl", contents))


def test_stage_after_a_failure_works(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a"}\n{', encoding="utf-8")
    mistake(tmp_path, str(path))
    staged(tmp_path, lines_file(path, ["b"]))
    assert texts(tmp_path) == ["b"]
    assert set_aside(tmp_path) == []


def test_stage_leaves_nothing_beside_the_set(tmp_path: Path) -> None:
    staged(tmp_path, lines_file(tmp_path / "in.jsonl", ["a"]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "prompts"]
    assert sorted(p.name for p in (tmp_path / "prompts").iterdir()) == ["00000.parquet", "set_aside.jsonl"]


def test_check_sources_good_file_says_nothing(tmp_path: Path) -> None:
    check_sources(Prompts(source=lines_file(tmp_path / "in.jsonl", ["a", "b"])))


@pytest.mark.parametrize("text", ["{", '{"ask": "a"}', "5"])
def test_check_sources_wrong_first_row_is_found(text: str, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"{path}:1: "):
        check_sources(Prompts(source=str(path)))


def test_check_sources_missing_file_is_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        check_sources(Prompts(source=[lines_file(tmp_path / "in.jsonl", ["a"]), str(tmp_path / "none.csv")]))


def test_seen_finds_the_new_ones_across_many_batches() -> None:
    """Against Python's own set, over batches with repetitions within and between them."""
    seen, known = Seen(), set()
    for batch in range(40):
        identities = [prompt_id((Message("user", str(i * i % (70 + batch))),)) for i in range(50)]
        wanted = []
        for place, identity in enumerate(identities):
            if identity not in known:
                known.add(identity)
                wanted.append(place)
        assert seen.add(identities) == wanted
    assert len(known) > 80
