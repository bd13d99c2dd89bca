"""Exports: what TRL's own helpers make of them, what the other targets document, and that a file is there whole."""

from __future__ import annotations

import base64
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset
from running import TURNS, popalign
from trl.data_utils import is_conversational, maybe_extract_prompt, maybe_unpair_preference_dataset

from factory.card import card
from factory.errors import InputError
from factory.export import MARK, Exported, export
from factory.format import FORMATS, kwise
from factory.place import Place
from factory.run import Run
from factory.shard import shards


def pairs(mixed: Run) -> list[dict[str, Any]]:
    rows = [r for place in shards(mixed.current("pairs", "")) for r in pq.read_table(place.opened()).to_pylist()]
    kept = [row for row in rows if row["status"] == "kept"]
    assert 0 < len(kept) < len(rows) and {row["split"] for row in kept} == {"train", "heldout"}
    return sorted(kept, key=lambda row: row["split"] != "train")  # stable: in the order of the files


def written(mixed: Run, to: str, out: Path, split: str = "all") -> Exported:
    return export(mixed, to, out=Place.of(out), split=split, describe=lambda made: card(mixed, made))


def lines(found: Exported) -> list[dict[str, Any]]:
    return [json.loads(line) for file in found.files for line in (found.folder / file.name).read().splitlines()]


def rows(mixed: Run, to: str, out: Path) -> list[dict[str, Any]]:
    return lines(written(mixed, to, out))


def test_trl_is_what_trl_calls_a_conversational_preference_with_a_prompt(mixed: Run, tmp_path: Path) -> None:
    found = rows(mixed, "trl", tmp_path / "out")
    kept = pairs(mixed)
    assert found == [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in kept]
    assert all(is_conversational(row) for row in found)
    assert [maybe_extract_prompt(row) for row in found] == found, "the prompt is explicit already"


def test_trl_implicit_holds_the_prompts_that_trl_extracts(mixed: Run, tmp_path: Path) -> None:
    found = rows(mixed, "trl-implicit", tmp_path / "out")
    assert all(set(row) == {"chosen", "rejected"} and is_conversational(row) for row in found)
    assert [maybe_extract_prompt(row) for row in found] == rows(mixed, "trl", tmp_path / "explicit")


def test_kto_is_what_trl_makes_of_its_pairs(mixed: Run, tmp_path: Path) -> None:
    found = rows(mixed, "kto", tmp_path / "out")
    theirs = maybe_unpair_preference_dataset(Dataset.from_list(rows(mixed, "trl", tmp_path / "trl"))).to_list()

    def counted(some: list[dict[str, Any]]) -> Counter[str]:
        return Counter(json.dumps(row, sort_keys=True) for row in some)

    assert all(is_conversational(row) for row in found)
    assert counted(found) == counted(theirs)


def test_nemo_rl_has_a_context_and_two_ranked_completions(mixed: Run, tmp_path: Path) -> None:
    found = rows(mixed, "nemo-rl", tmp_path / "out")
    for row, pair in zip(found, pairs(mixed), strict=True):
        assert row.keys() == {"context", "completions"} and row["context"] == pair["prompt"]
        assert [completion.keys() for completion in row["completions"]] == [{"rank", "completion"}] * 2
        assert {c["rank"]: c["completion"] for c in row["completions"]} == {0: pair["chosen"], 1: pair["rejected"]}


def test_llama_factory_follows_its_entries_in_dataset_info(mixed: Run, tmp_path: Path) -> None:
    found = written(mixed, "llama-factory", tmp_path / "out")
    entries = json.loads((found.folder / "dataset_info.json").read())
    assert list(entries) == ["popalign_train", "popalign_heldout"]
    assert [entry["file_name"] for entry in entries.values()] == ["train.jsonl", "heldout.jsonl"]
    assert all(entry["ranking"] is True and entry["formatting"] == "sharegpt" for entry in entries.values())
    columns = entries["popalign_train"]["columns"]
    with_system = 0
    for row, pair in zip(lines(found), pairs(mixed), strict=True):
        turns = row[columns["messages"]]
        if turns[0]["from"] == "system":
            assert turns.pop(0)["value"] == TURNS[0]["content"]
            with_system += 1
        assert len(turns) % 2 == 1 and all(turn["from"] == ("human", "gpt")[i % 2] for i, turn in enumerate(turns))
        assert turns[-1]["value"] == pair["prompt"][-1]["content"]
        for side in ("chosen", "rejected"):
            assert row[columns[side]] == {"from": "gpt", "value": pair[side][0]["content"]}
    assert with_system


def test_axolotl_has_messages_and_one_message_a_side(mixed: Run, tmp_path: Path) -> None:
    for row, pair in zip(rows(mixed, "axolotl", tmp_path / "out"), pairs(mixed), strict=True):
        expected = {"messages": pair["prompt"], "chosen": pair["chosen"][0], "rejected": pair["rejected"][0]}
        assert row == expected and row["chosen"]["role"] == "assistant"


def test_openrlhf_prompt_is_all_but_the_last_turn_of_both_sides(mixed: Run, tmp_path: Path) -> None:
    for row, pair in zip(rows(mixed, "openrlhf", tmp_path / "out"), pairs(mixed), strict=True):
        assert row.keys() == {"chosen", "rejected"}, "it would read a column 'margin' as one of rewards"
        assert row["chosen"][:-1] == row["rejected"][:-1] == pair["prompt"]
        assert [row["chosen"][-1], row["rejected"][-1]] == [pair["chosen"][0], pair["rejected"][0]]


def test_jsonl_is_the_pairs_as_they_are_stored(mixed: Run, tmp_path: Path) -> None:
    assert rows(mixed, "jsonl", tmp_path / "out") == pairs(mixed)


def test_kwise_ranks_the_answers_of_a_prompt_by_who_chose_them(mixed: Run, tmp_path: Path) -> None:
    found = rows(mixed, "kwise", tmp_path / "out")
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for pair in pairs(mixed):
        by_prompt.setdefault(pair["prompt_id"], []).append(pair)
    assert [row["prompt_id"] for row in found] == list(by_prompt)
    for row in found:
        ranks = {answer["answer"][0]["content"]: answer["rank"] for answer in row["answers"]}
        assert len(ranks) == len(row["answers"]) and list(ranks.values()) == sorted(ranks.values())
        assert all(ranks[p["chosen"][0]["content"]] <= 1 <= ranks[p["rejected"][0]["content"]] for p in
                   by_prompt[row["prompt_id"]])  # fmt: skip
        assert all((a["rank"] == 1) == bool(a["chosen_by"] and a["rejected_by"]) for a in row["answers"])


def test_kwise_puts_an_answer_of_both_sides_between() -> None:
    def pair(strategy: str, chosen: str, rejected: str) -> dict[str, Any]:
        sides = {"chosen": chosen, "rejected": rejected}
        turns = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
        return {"prompt_id": "p", "prompt": [], "strategy": strategy, **turns}

    (row,) = kwise([pair("refine", "second", "first"), pair("nparam", "first", "small")])
    assert [(a["rank"], a["answer"][0]["content"], a["chosen_by"], a["rejected_by"]) for a in row["answers"]] == [
        (0, "second", ["refine"], []),
        (1, "first", ["nparam"], ["refine"]),
        (2, "small", [], ["nparam"]),
    ]


@pytest.mark.parametrize("to", FORMATS)
def test_export_is_repeatable_to_the_byte_and_loads_with_its_splits(mixed: Run, tmp_path: Path, to: str) -> None:
    first = written(mixed, to, tmp_path / "out")
    content = {name: (first.folder / name).read() for name in first.folder.files()}
    again = written(mixed, to, tmp_path / "out")
    assert {name: (again.folder / name).read() for name in again.folder.files()} == content
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing is left beside"
    for file in first.files:
        assert len(content[file.name].decode().splitlines()) == file.rows, "a line separator of the text ends a line"
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: data.num_rows for split, data in loaded.items()} == {f.split: f.rows for f in first.files}


def test_export_of_one_split_replaces_the_export_before(mixed: Run, tmp_path: Path) -> None:
    written(mixed, "trl", tmp_path / "out")
    found = written(mixed, "trl", tmp_path / "out", "heldout")
    assert [file.name for file in found.files] == ["heldout.jsonl"]
    assert not (tmp_path / "out" / "train.jsonl").exists()
    assert found.pairs == sum(pair["split"] == "heldout" for pair in pairs(mixed))


def test_export_leaves_a_folder_of_somebody_else_alone(mixed: Run, tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(InputError, match=f"--out: .* no export of ours \\(no {MARK}\\)"):
        written(mixed, "llama-factory", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset_info.json"]


def test_export_that_fails_keeps_the_one_before(mixed: Run, tmp_path: Path) -> None:
    before = written(mixed, "trl", tmp_path / "out")

    def broken(made: Exported) -> str:
        raise InputError(f"no card for {made.pairs} pairs")

    with pytest.raises(InputError, match="no card"):
        export(mixed, "kto", out=Place.of(tmp_path / "out"), describe=broken)
    assert lines(before) and [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--to", "trl-implict"], "--to: unknown format 'trl-implict'; did you mean 'trl-implicit'?"),
        (["--to", "trl", "--split", "test"], "--split: unknown split 'test'"),
        (["--to", "trl", "--public"], "--public: nothing is uploaded without --push NAME"),
    ],
)
def test_export_command_names_a_mistake_in_one_line(mixed: Run, options: list[str], says: str) -> None:
    done = popalign("export", str(mixed.path), *options)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1
    assert not (mixed.path / "exports").is_dir()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as an upload of small files takes; it keeps what it was sent."""

    private: bool | None
    uploaded: dict[str, bytes]

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            if type(self).private is None:
                type(self).private = json.loads(content).get("visibility") == "private"
            return self.answer({"url": f"{self.base}/datasets/me/pairs", "id": "me/pairs"})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(content)["files"]]
            return self.answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        if "/commit/" in self.path:
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    self.uploaded[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.base}/datasets/me/pairs/commit/{'0' * 40}"
            return self.answer({"commitUrl": url, "commitOid": "0" * 40, "success": True})
        return self.answer({})

    def do_GET(self) -> None:
        facts = {"id": "me/pairs", "sha": "0" * 40, "private": type(self).private, "siblings": [], "tags": []}
        self.answer(facts)

    def answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @property
    def base(self) -> str:
        return f"http://{self.headers['Host']}"

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[type[Hub], dict[str, str]]]:
    """A hub of our own on loopback, and the environment under which it is found."""
    kind = type("OwnHub", (Hub,), {"private": None, "uploaded": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield kind, {"HF_ENDPOINT": address, "HF_TOKEN": "hf_none", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    server.shutdown()


def test_push_uploads_a_private_data_set(mixed: Run, tmp_path: Path, hub: tuple[type[Hub], dict[str, str]]) -> None:
    kind, environment = hub
    out = tmp_path / "out"
    done = popalign("export", str(mixed.path), "--to", "trl", "--out", str(out), "--push", "me/pairs", **environment)
    assert done.returncode == 0, done.stderr
    assert kind.private is True and "/datasets/me/pairs" in done.stdout
    assert kind.uploaded == {path.name: path.read_bytes() for path in out.iterdir()}


def test_push_to_a_public_data_set_is_refused(
    mixed: Run, tmp_path: Path, hub: tuple[type[Hub], dict[str, str]]
) -> None:
    kind, environment = hub
    kind.private = False
    command = ["export", str(mixed.path), "--to", "trl", "--out", str(tmp_path / "out"), "--push", "me/pairs"]
    done = popalign(*command, **environment)
    assert done.returncode == 2 and "--push: me/pairs is there and public" in done.stderr
    assert not kind.uploaded
