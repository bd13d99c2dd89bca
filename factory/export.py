"""Kept pairs in the formats of other trainers: JSON lines, a file for each split, in memory of a constant size."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, groupby
from pathlib import Path

import yaml

from factory.errors import InputError, nearest
from factory.format import FORMATS, Pair, dataset_info
from factory.place import Place
from factory.run import Run
from factory.shard import parquet, shards

SPLITS = ("train", "heldout")
# Says that a folder is a whole export of ours; written last. Not JSON: `load_dataset(FOLDER)` would read it as rows.
MARK = "export.yaml"
ROWS_AT_ONCE = 512
# Ends of a line to `str.splitlines`, which some readers use, and JSON does not escape them.
LINE_ENDS = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "\u0085\u2028\u2029"})


@dataclass(frozen=True, slots=True)
class File:
    """A file of an export."""

    name: str
    split: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Exported:
    """An export as it was written."""

    format: str
    folder: Place
    pairs: int
    files: tuple[File, ...]


def export(
    run: Run, to: str, *, describe: Callable[[Exported], str], out: Place | None = None, split: str = "all"
) -> Exported:
    """Write the kept pairs of a run to ``out`` (default: ``<run>/exports/<format>``), as ``train.jsonl`` and
    ``heldout.jsonl``, with the text of ``describe`` as README.md: the same pairs give the same bytes.

    An export of ours that is there is replaced; written aside first, so that a reader sees the old one or the new one.

    Raises:
        InputError: an unknown format or split, no kept pairs, or the folder holds something else.
    """
    if to not in FORMATS:
        raise InputError(f"--to: unknown format '{to}'{nearest(to, FORMATS)}")
    if split not in (*SPLITS, "all"):
        raise InputError(f"--split: unknown split '{split}'{nearest(split, (*SPLITS, 'all'))}")
    source = run.current("pairs", f"pairs {run.path}")
    target = out or run.path / "exports" / to
    _require_ours(target)
    with _aside(target) as folder:
        pairs, files = _write(source, folder, to, SPLITS if split == "all" else (split,))
        if not pairs:
            of = "" if split == "all" else f" of the split {split}"
            raise InputError(f"{run.path}: no pair{of} was kept, so there is nothing to export; see: popalign status")
        found = Exported(to, target, pairs, tuple(files))
        (folder / "README.md").write_text(describe(found), encoding="utf-8")
        facts = {
            "format": to,
            "fingerprint": run.order.fingerprint,
            "pairs_checksum": run.manifest["pairs"]["checksum"],
            "pairs": pairs,
            "files": [asdict(file) for file in files],
        }
        (folder / MARK).write_text(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True), encoding="utf-8")
        _switch(folder, target)
    return found


def kept(folder: Place, splits: Sequence[str] = SPLITS) -> Iterator[list[Pair]]:
    """The kept pairs of some splits, those of one prompt together: they are neighbours in a shard, as they are made."""
    for shard in shards(folder):
        with parquet(shard) as file:
            rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(batch_size=ROWS_AT_ONCE))
            wanted = (row for row in rows if row["status"] == "kept" and row["split"] in splits)
            for _, group in groupby(wanted, key=lambda row: row["prompt_id"]):
                yield list(group)


def _write(source: Place, folder: Path, to: str, splits: Sequence[str]) -> tuple[int, list[File]]:
    """Write the files of the splits that have pairs; returns the pairs and the files."""
    pairs, files = 0, []
    for split in splits:
        path, rows, digest = folder / f"{split}.jsonl", 0, hashlib.sha256()
        with path.open("wb") as file:
            for group in kept(source, (split,)):
                pairs += len(group)
                for row in FORMATS[to](group):
                    line = json.dumps(row, ensure_ascii=False).translate(LINE_ENDS).encode() + b"\n"
                    digest.update(line)
                    file.write(line)
                    rows += 1
        if rows:
            files.append(File(path.name, split, rows, digest.hexdigest()))
        else:
            path.unlink()
    if to == "llama-factory":
        info = json.dumps(dataset_info([file.name for file in files]), indent=2)
        (folder / "dataset_info.json").write_text(info + "\n")
    return pairs, files


def _require_ours(target: Place) -> None:
    if target.is_file() or (target.entries() and not (target / MARK).is_file()):
        raise InputError(f"--out: {target} is there and no export of ours (no {MARK}); choose another folder")


@contextmanager
def _aside(target: Place) -> Iterator[Path]:
    """A folder to write into, beside the target where that is on a disk, so that it can be renamed."""
    if target.disk is not None:
        target.disk.parent.mkdir(parents=True, exist_ok=True)
    beside = None if target.disk is None else target.disk.parent
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=beside) as folder:
        yield Path(folder)


def _switch(folder: Path, target: Place) -> None:
    """Put a finished folder in the target's place; in an object store the mark goes first and comes last."""
    if target.disk is None:
        (target / MARK).remove()
        target.remove()
        mark = (folder / MARK).read_bytes()
        (folder / MARK).unlink()
        target.upload(folder)
        (target / MARK).write(mark)
        return
    new = folder / "new"
    content = list(folder.iterdir())
    new.mkdir()
    for path in content:
        path.rename(new / path.name)
    if target.disk.exists():
        target.disk.rename(folder / "old")
    new.rename(target.disk)


def push(found: Exported, name: str, *, public: bool) -> str:
    """Upload an export to the Hugging Face hub as a data set, private unless ``public``; returns its address. The token
    is the one of `hf auth login` or HF_TOKEN.

    Raises:
        InputError: the data set is there and public although it should not be, or the hub refuses.
    """
    from huggingface_hub import HfApi  # takes a second to import, and no other command talks to the hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        api.create_repo(name, repo_type="dataset", private=not public, exist_ok=True)
        if not public and not api.repo_info(name, repo_type="dataset").private:
            raise InputError(f"--push: {name} is there and public; say --public if that is meant")
        with tempfile.TemporaryDirectory() as scratch:
            folder = found.folder.disk
            if folder is None:
                folder = Path(scratch)
                found.folder.download(folder)
            api.upload_folder(folder_path=folder, repo_id=name, repo_type="dataset", commit_message="popalign export")
    except (HfHubHTTPError, HFValidationError, ConnectionError) as error:
        raise InputError(f"--push {name}: {' '.join(str(error).split())[:300]}") from None
    return f"{api.endpoint}/datasets/{name}"
