"""Runs on a disk and in an object store: a real S3 protocol server on loopback."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from moto.server import ThreadedMotoServer
from paired import made_up, run_of
from running import begin, generations, identities, popalign, scripted, until

from factory.errors import InputError
from factory.export import export
from factory.place import Place
from factory.report import write_report
from factory.run import Run
from factory.shard import shards
from factory.show import Wanted, find


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """The environment under which clients find an S3 server of our own."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    yield variables
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    moto.stop()


@pytest.fixture
def bucket(server: dict[str, str]) -> str:
    name = f"popalign-{uuid.uuid4().hex[:12]}"
    request = urllib.request.Request(f"{server['AWS_ENDPOINT_URL']}/{name}", method="PUT")
    urllib.request.urlopen(request, timeout=10).close()
    return f"s3://{name}"


@pytest.fixture(params=["disk", "object store"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "disk":
        return Place.of(tmp_path / "root")
    return Place.of(request.getfixturevalue("bucket")) / "root"


def test_place_writes_lists_reads_and_removes(root: Place, tmp_path: Path) -> None:
    assert root.entries() == []
    (root / "b" / "2.txt").write(b"two")
    (root / "b" / "1.txt").write(b"one")
    (root / "a.txt").write(b"")
    assert [place.name for place in root.entries()] == ["a.txt", "b"]
    assert root.files() == {"a.txt": 0, "b/1.txt": 3, "b/2.txt": 3}
    assert (root / "b" / "2.txt").read() == b"two"
    (root / "b" / "2.txt").write(b"other")
    assert (root / "b" / "2.txt").read() == b"other"
    assert (root / "b").is_dir() and not (root / "b").is_file() and (root / "a.txt").is_file()
    again = pickle.loads(pickle.dumps(root))
    assert again == root and again.files() == root.files()
    (root / "b").remove()
    (root / "no such").remove()
    assert root.files() == {"a.txt": 0}


def test_place_copies_folders_both_ways(root: Place, tmp_path: Path) -> None:
    (tmp_path / "model" / "part").mkdir(parents=True)
    (tmp_path / "model" / "part" / "weights").write_bytes(b"123")
    (root / "model").upload(tmp_path / "model")
    (root / "model").download(tmp_path / "copy")
    assert (tmp_path / "copy" / "part" / "weights").read_bytes() == b"123"


@pytest.mark.parametrize("address", ["ftp://host/run", "s3://bucket/run?endpoint_override=x"])
def test_place_refuses_other_addresses(address: str) -> None:
    with pytest.raises(InputError, match="s3://BUCKET/FOLDER"):
        Place.of(address)


@pytest.mark.soak
def test_run_in_an_object_store_resumes_verifies_and_shows_damage(
    tmp_path: Path, bucket: str, server: dict[str, str]
) -> None:
    recipe, run = scripted(tmp_path, 120), f"{bucket}/some/run"
    progress = Place.of(run) / "progress"
    slow = ["--set", f"run={run}", "--set", "variants.strong.speed=100", "--set", "variants.strong.max_num_seqs=16"]
    process = begin("generate", str(recipe), *slow, "--set", "rows_per_task=8", **server)
    until(lambda: len(progress.files()) >= 4, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    status = popalign("status", run, **server)
    assert "not complete" in status.stdout, status.stderr
    done = popalign("generate", str(recipe), "--set", f"run={run}", **server)
    assert done.returncode == 0, done.stderr
    effort = Run.open(run).manifest["effort"][-1]
    assert 0 < effort["by_variant"]["strong"]["requests"] < 8 * 120, "nothing was taken from what was stored"
    assert progress.files() == {}

    local = tmp_path / "local"
    local.mkdir()
    assert popalign("generate", str(scripted(local, 120))).returncode == 0
    assert identities(run) == identities(local / "run")
    assert len(generations(run)) == 120

    done = popalign("pairs", run, **server)
    assert done.returncode == 0, done.stderr
    assert popalign("status", run, "--verify", **server).returncode == 0
    (shard,) = shards(Run.open(run).current("pairs", "pairs"))
    content = bytearray(shard.read())
    content[len(content) // 2] ^= 1
    shard.write(bytes(content))
    done = popalign("status", run, "--verify", **server)
    assert done.returncode == 1
    assert f"{shard} differs from its checksum" in done.stderr


def test_export_is_whole_in_a_folder_or_an_object_store_and_is_replaced(root: Place, mixed: Run) -> None:
    out = root / "exports" / "pairs"
    for to in ("llama-factory", "trl"):
        found = export(mixed, to, out=out, describe=lambda made: made.format)
        assert (out / "README.md").read() == to.encode()
        for file in found.files:
            assert hashlib.sha256((out / file.name).read()).hexdigest() == file.sha256
    assert list(out.files()) == ["README.md", "export.yaml", "heldout.jsonl", "train.jsonl"]
    (out / "export.yaml").remove()
    with pytest.raises(InputError, match="no export of ours"):
        export(mixed, "trl", out=out, describe=lambda made: made.format)


@pytest.mark.engine
def test_model_trained_in_an_object_store_is_there_whole(
    tmp_path: Path, bucket: str, server: dict[str, str], tiny_model: Path
) -> None:
    run = f"{bucket}/run"
    train = {"variant": "base", "batch_size": 4, "micro_batch_size": 2, "precision": "fp32", "learning_rate": 1e-3}
    train |= {"target_margin": {"by": "margin"}}
    recipe = scripted(tmp_path, 16, train=train, scores={"margin": True}, evaluate={"samples": 0})
    content = yaml.safe_load(recipe.read_text())
    content["variants"]["base"] = {"model": str(tiny_model)}
    content["prompts"]["heldout"] = 0.3
    recipe.write_text(yaml.safe_dump(content))
    done = popalign("run", str(recipe), "--set", f"run={run}", **server)
    assert done.returncode == 0, done.stderr
    names = set((Place.of(run) / "model").files())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {name.rpartition("/")[2] for name in names}
    manifest = Run.open(run).manifest
    assert manifest["evaluation"] and manifest["model"]


def test_report_and_show_of_a_run_in_an_object_store(bucket: str) -> None:
    rows = made_up(20)
    run = run_of(f"{bucket}/run", rows)
    place = write_report(run)
    assert place == run.path / "report.html" and rows[7]["pair_id"] in place.read().decode()
    assert find(run.current("pairs", ""), Wanted(id=rows[7]["pair_id"]), 5) == [rows[7]]
