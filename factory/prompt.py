"""Prompts from files, globs, data sets and the built-in set, staged once: content ids, no duplicates, a split."""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.errors import InputError
from factory.overlap import Evaluations
from factory.place import Place
from factory.recipe import Prompts
from factory.shard import COMPLETION, GENERATION, PROMPT, TARGET_BYTES, ShardWriter, Written, rows_per_group
from factory.sieve import REASON, sieve
from strategies.contrast import Message
from strategies.label import GIVEN, given

COLUMNS = ("prompt", "messages", "instruction", "question", "text")
ROLES = ("system", "user", "assistant")
FORMATS = (".jsonl", ".json", ".parquet", ".csv")
# Held as Python objects until they are written: some 40 MiB.
PROMPTS_AT_ONCE = 20_000


@dataclass(slots=True)
class Staged:
    """What staging made of the sources; the counts add up to ``read``."""

    read: int = 0
    ready: int = 0
    duplicates: int = 0
    set_aside: dict[str, int] = field(default_factory=dict)  # reason -> prompts

    def summary(self) -> dict[str, Any]:
        return asdict(self)


def prompt_id(prompt: tuple[Message, ...]) -> str:
    """Identity of a prompt: 128 bits of SHA-256 over its turns."""
    turns = [[message.role, message.content] for message in prompt]
    return hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode()).hexdigest()[:32]


def split(identity: str, heldout: float) -> str:
    """``train`` or ``heldout``, by the prompt's id alone, so that it is the same in every run."""
    return "heldout" if int(identity[-8:], 16) / 2**32 < heldout else "train"


def stage(
    settings: Prompts,
    folder: Place,
    *,
    count_tokens: Callable[[tuple[Message, ...]], int],
    metadata: dict[str, str],
    labelled: bool = False,
    progress: Callable[[int], None] = lambda read: None,
) -> tuple[Staged, list[Written]]:
    """Write the prompts of the sources as shards into ``folder``, and ``set_aside.jsonl`` beside them.

    ``count_tokens`` gives the length of a bare prompt for the input limit. ``labelled``: keep the answers that come
    with the prompts as completions (strategy `label`). Memory: 16 bytes for each different prompt,
    200 for each that is set aside, and one shard. Needs a Ray session where ``near_duplicates`` is set.

    Raises:
        InputError: naming the file and line that cannot be read.
    """
    staged = Staged()
    known = Evaluations(evaluations(settings), settings.decontaminate_ngram, settings.decontaminate_share)
    seen = Seen()
    rows: list[dict[str, Any]] = []
    written: list[Written] = []

    schema = GENERATION if labelled else PROMPT
    writer = ShardWriter(schema, metadata)

    def flush(*, last: bool = False) -> None:
        nonlocal writer
        fresh = seen.add([row["prompt_id"] for row in rows])
        staged.duplicates += len(rows) - len(fresh)
        staged.ready += len(fresh)
        if fresh:
            table = pa.Table.from_pylist([rows[i] for i in fresh], schema)
            writer.add(table, rows_per_group(table.num_rows))
        if writer.num_rows and (last or writer.num_bytes >= TARGET_BYTES):
            written.append(writer.write(folder / f"{len(written):05d}.parquet"))
            writer = ShardWriter(schema, metadata)
        rows.clear()
        progress(staged.read)

    with tempfile.TemporaryFile() as aside:
        for source, row in _read(settings):
            staged.read += 1
            prompt, reason = parse(_prompt(row, settings.column, source))
            if reason is None and count_tokens(prompt) > settings.max_tokens:
                reason = "over_input_limit"
            overlap = known.overlap(spoken(prompt)) if reason is None and len(known) else None
            if overlap is not None:
                reason = "contaminated"
            if reason is not None:
                staged.set_aside[reason] = staged.set_aside.get(reason, 0) + 1
                facts = {"source": source, "reason": reason, **(asdict(overlap) if overlap else {})}
                aside.write(json.dumps(facts).encode() + b"\n")
                continue
            identity = prompt_id(prompt)
            turns = [{"role": message.role, "content": message.content} for message in prompt]
            side = split(identity, settings.heldout)
            answers = given_answers(row, prompt, count_tokens) if labelled else []
            rows.append(
                {"prompt_id": identity, "prompt": turns, "split": side, "source": source, "completions": answers}
            )
            if len(rows) == PROMPTS_AT_ONCE:
                flush()
        flush(last=True)
        if settings.near_duplicates is not None and staged.ready:
            near, written = sieve(folder, written, settings.near_duplicates, metadata, aside)
            staged.ready -= near
            staged.set_aside.update({REASON: near} if near else {})
        if not staged.ready:
            what = staged.set_aside or "no rows"
            raise InputError(f"prompts.source: no usable prompt among {staged.read} read ({what})")
        aside.seek(0)
        (folder / "set_aside.jsonl").write(aside.read())
    return staged, written


class Seen:
    """The ids of the prompts so far, as sorted arrays of 16 bytes an id; a Python set takes six times more."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def add(self, identities: list[str]) -> list[int]:
        """Places of those that are new, the first of each, in order."""
        if not identities:
            return []
        batch = np.frombuffer(bytes.fromhex("".join(identities)), dtype="S16")
        fresh, first = np.unique(batch, return_index=True)
        new = np.ones(len(fresh), dtype=bool)
        for array in self._arrays:
            at = np.minimum(np.searchsorted(array, fresh), len(array) - 1)
            new &= array[at] != fresh
        if new.any():
            self._arrays.append(fresh[new])
        # As in a merge sort: an array is merged into the one before once it is as long, so there are few of them.
        while len(self._arrays) > 1 and len(self._arrays[-1]) * 2 > len(self._arrays[-2]):
            last = self._arrays.pop()
            self._arrays[-1] = np.sort(np.concatenate([self._arrays[-1], last]))
        return sorted(int(i) for i in first[new])


def parse(content: Any) -> tuple[tuple[Message, ...], str | None]:
    """A prompt's turns, or the reason why it is set aside."""
    if isinstance(content, str):
        content = [{"role": "user", "content": content}]
    if not content:
        return (), "empty"
    try:
        turns = tuple(Message(turn["role"], turn["content"]) for turn in content)
    except (TypeError, KeyError):
        return (), "not_a_conversation"
    if any(turn.role not in ROLES or not isinstance(turn.content, str) for turn in turns):
        return (), "not_a_conversation"
    if turns[-1].role != "user":
        return (), "no_user_turn_at_the_end"
    try:
        "".join(str(turn.content) for turn in turns).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as cutting a string leaves it
        return (), "not_unicode"
    return turns, None if str(turns[-1].content).strip() else "empty"


def given_answers(
    row: Mapping[str, Any], prompt: tuple[Message, ...], count_tokens: Callable[[tuple[Message, ...]], int]
) -> list[dict[str, Any]]:
    """The answers of a labelled row as completions: columns ``chosen`` and ``rejected``, each a text, or turns that end
    with the answer. None where one is missing."""
    texts = [_last_turn(row.get(name)) for name in ("chosen", "rejected")]
    if None in texts:
        return []
    blank = dict.fromkeys(field.name for field in COMPLETION)
    return [
        {
            **blank,
            "generation_id": given(prompt, side).id,
            "variant": GIVEN,
            "text": text,
            "answer": text,
            "finish": "stop",
            "prompt_tokens": 0,
            "cached_tokens": 0,
            "tokens": count_tokens((Message("assistant", str(text)),)),
        }
        for side, text in enumerate(texts)
    ]


def _last_turn(content: Any) -> str | None:
    if isinstance(content, list) and content and isinstance(content[-1], Mapping):
        content = content[-1].get("content")
    return content if isinstance(content, str) else None


def read(settings: Prompts) -> Iterator[tuple[str, Any]]:
    """The prompts of all sources as (where it stands, text or turns), in order, up to the limit."""
    for place, row in _read(settings):
        yield place, _prompt(row, settings.column, place)


def _read(settings: Prompts) -> Iterator[tuple[str, Any]]:
    sources = [settings.source] if isinstance(settings.source, str) else settings.source
    paths = [path for source in sources for path in _expand(source)]
    left = settings.limit if settings.limit is not None else sys.maxsize
    for path in paths:
        for place, row in _rows(path):
            if left <= 0:
                return
            left -= 1
            yield f"{path}:{place}", row


def evaluations(settings: Prompts) -> Iterator[tuple[str, str]]:
    """What users say in the evaluation prompts to keep away from, with where it stands.

    Raises:
        InputError: naming the file and line that cannot be read.
    """
    try:
        for place, content in read(Prompts(source=settings.decontaminate)) if settings.decontaminate else ():
            yield place, "\n".join(str(turn.content) for turn in parse(content)[0] if turn.role == "user")
    except InputError as error:
        text = str(error).replace("prompts.source", "prompts.decontaminate", 1)
        raise InputError(text.replace("name one with prompts.column", "rename one")) from None


def spoken(prompt: tuple[Message, ...]) -> str:
    """All text of a prompt."""
    return "\n".join(str(message.content) for message in prompt)


def check_sources(settings: Prompts) -> None:
    """Find a missing file, an unknown format or a wrong first row before anything starts.

    Raises:
        InputError: naming the file, and the line or column.
    """
    for _ in read(settings.model_copy(update={"limit": 1})):
        pass
    next(evaluations(settings), None)


def _expand(source: str) -> list[str]:
    """The files that a source names; data sets and the built-in set stay as they are. Missing files are found here,
    before anything is read."""
    if source.startswith(("hf://", "builtin:")):
        return [source]
    paths = sorted(glob.glob(source, recursive=True)) if glob.has_magic(source) else [source]
    if not paths:
        raise InputError(f"prompts.source: no file matches {source}")
    for path in paths:
        if not Path(path).is_file():
            kind = "is a directory; name files, such as DIR/*.jsonl" if Path(path).is_dir() else "does not exist"
            raise InputError(f"prompts.source: {path} {kind}")
        if Path(path).suffix not in FORMATS:
            raise InputError(f"prompts.source: {path}: unknown format; known: {', '.join(FORMATS)}")
    return paths


def _rows(path: str) -> Iterator[tuple[int, Any]]:
    """Rows of one source with the line or row number."""
    if path.startswith("builtin:"):
        resource = files("factory") / "prompts" / f"{path.removeprefix('builtin:')}.jsonl"
        if not resource.is_file():
            raise InputError(f"prompts.source: no built-in set '{path}'; there is builtin:demo")
        yield from _json_lines(path, iter(resource.read_text(encoding="utf-8").splitlines()))
    elif path.startswith("hf://"):
        yield from _data_set(path)
    else:
        reader = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet, ".csv": _read_csv}
        try:
            yield from reader[Path(path).suffix](path)
        except UnicodeDecodeError as error:
            raise InputError(f"prompts.source: {path} is not UTF-8 text ({error.reason})") from None
        except OSError as error:
            raise InputError(f"prompts.source: cannot read {path}: {error.strerror or error}") from None
        except (pa.ArrowException, csv.Error) as error:
            raise InputError(f"prompts.source: cannot read {path}: {str(error).splitlines()[0]}") from None


def _read_jsonl(path: str) -> Iterator[tuple[int, Any]]:
    with Path(path).open(encoding="utf-8-sig") as lines:
        yield from _json_lines(path, lines)


def _json_lines(path: str, lines: Iterator[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"prompts.source: {path}:{number}: not JSON ({error.msg}): {line.strip()[:60]}") from None


def _read_json(path: str) -> Iterator[tuple[int, Any]]:
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(f"prompts.source: {path}:{error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(rows, list):
        raise InputError(f"prompts.source: {path}: expected a list of rows, found {type(rows).__name__}")
    yield from enumerate(rows, start=1)


def _read_parquet(path: str) -> Iterator[tuple[int, Any]]:
    with pq.ParquetFile(path) as file:
        rows = (row for batch in file.iter_batches(batch_size=4096) for row in batch.to_pylist())
        yield from enumerate(rows, start=1)


def _read_csv(path: str) -> Iterator[tuple[int, Any]]:
    with Path(path).open(encoding="utf-8-sig", newline="") as file:  # spreadsheets write a byte order mark
        reader = csv.DictReader(file)
        for row in reader:
            yield reader.line_num, row


def _data_set(path: str) -> Iterator[tuple[int, Any]]:
    name, _, part = path.removeprefix("hf://").partition(":")
    import datasets  # takes a second to import, and only this source needs it

    try:
        rows = datasets.load_dataset(name, split=part or "train", streaming=True)
        yield from enumerate(rows, start=1)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"prompts.source: cannot load {path}: {str(error).splitlines()[0]}") from None


def _prompt(row: Any, column: str | None, place: str) -> Any:
    """The prompt of a row: a text, or a list of turns."""
    if not isinstance(row, Mapping):
        raise InputError(f"prompts.source: {place}: expected an object with a prompt column, found {row!r:.60}")
    wanted = [column] if column else COLUMNS
    for name in wanted:
        if name in row:
            return row[name]
    missing = f"no column '{column}'" if column else f"no prompt column ({', '.join(COLUMNS)})"
    raise InputError(
        f"prompts.source: {place}: {missing}; it has: {', '.join(map(str, row))}; name one with prompts.column"
    )
