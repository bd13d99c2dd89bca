"""The launch file is checked offline; submission runs against a real Ray head with its job server."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.job_submission import JobStatus, JobSubmissionClient
from running import stored

from cluster.submit import entrypoint, recipe_on_cluster

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
LAUNCH = ROOT / "cluster" / "local.yaml"
NUM_PROMPTS = 12
# A token of our own: Ray makes one in the user's home at the first `ray.init()`, and heads ask for it from then on.
TOKEN = secrets.token_hex(16)
# Ray's own client would prefer RAY_ADDRESS to the address that it is given; --address counts.
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_ADDRESS": "127.0.0.1:1"}
ENVIRONMENT.pop("RAY_API_SERVER_ADDRESS", None)


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The job server's address of a Ray head of our own: own ports, own folder, ended by its process tree."""
    ports = _free_ports(6)
    # Not pytest's tmp_path: the paths of Ray's sockets may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="pa", dir="/tmp", ignore_cleanup_errors=True) as folder:
        words = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=true"]
        words += ["--disable-usage-stats", "--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
        words += [f"--temp-dir={folder}"]
        names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
        names += ("metrics-export-port", "ray-client-server-port")
        words += [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
        env = {**ENVIRONMENT, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
        env.pop("RAY_ADDRESS")
        log = Path(folder) / "start.log"
        with log.open("w") as out:
            process = subprocess.Popen(words, env=env, stdout=out, stderr=out, cwd=folder, start_new_session=True)
        address = f"http://127.0.0.1:{ports[1]}"
        try:
            _wait(lambda: process.poll() is not None or _answers(address), 90, "the job server")
            assert process.poll() is None, log.read_text()
            yield address
        finally:
            _end(process)


def test_launch_file_is_valid() -> None:
    config = prepare_config(_launch())
    validate_config(config)
    assert config["max_workers"] == len(config["provider"]["worker_ips"]) == 2


def test_launch_file_with_an_unknown_key_is_rejected() -> None:
    with pytest.raises(jsonschema.ValidationError, match="setup_comands"):
        validate_config(prepare_config({**_launch(), "setup_comands": []}))


def test_launch_file_mounts_what_an_install_needs() -> None:
    mounts = _launch()["file_mounts"]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= set(mounts.values())
    assert {"pyproject.toml", "constraints.txt", "Makefile", "README.md", "LICENSE"} <= set(mounts.values())
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert all(target == f"~/popalign/{source}" for target, source in mounts.items())


def test_entrypoint_quotes_for_the_shell() -> None:
    words = entrypoint("my recipe.yaml", ["run=/nfs/it's"], command="run", python="python")
    assert words == """python -m factory run 'my recipe.yaml' --set 'run=/nfs/it'"'"'s'"""


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("demo", "demo"),
        (str(ROOT / "factory" / "recipes" / "demo.yaml"), "factory/recipes/demo.yaml"),  # part of the upload
        ("/etc/hostname", "/etc/hostname"),  # must be on the head node
        ("dmeo", "dmeo"),  # the cookbook says what is near
    ],
)
def test_recipe_is_named_as_the_job_finds_it(given: str, named: str) -> None:
    assert recipe_on_cluster(given) == named


def test_submit_of_a_bad_recipe_fails_before_connecting(recipe: Path) -> None:
    done = _submit(str(recipe), "--set", "variants.small.modell=x", "--address", "http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"submit: recipe {recipe}: variants.small: unknown key 'modell'; did you mean 'model'?\n"


def test_submit_to_an_unreachable_address_is_one_line(recipe: Path) -> None:
    [port] = _free_ports(1)
    done = _submit(str(recipe), "--address", f"http://127.0.0.1:{port}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"submit: no Ray job server answers at http://127.0.0.1:{port}; start one with")
    assert done.stderr.count("\n") == 1


def test_submit_to_what_is_no_url_is_one_line(recipe: Path) -> None:
    done = _submit(str(recipe), "--address", "127.0.0.1:8265")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "submit: --address 127.0.0.1:8265: expected a URL, such as http://127.0.0.1:8265\n"


@pytest.mark.soak
def test_job_survives_ctrl_c_and_is_resumed(head: str, recipe: Path) -> None:
    run = Path(yaml.safe_load(recipe.read_text())["run"])
    words = [str(recipe), "--command", "generate", "--address", head]
    client = _client(head)

    # So slow that it cannot end: 4 prompts have an empty answer, which takes no time, each other one many minutes.
    slow = ["--set", "variants.small.speed=0.01", "--submission-id", "the-first"]
    first = subprocess.Popen(_command(*words, *slow), cwd=ROOT, env=ENVIRONMENT, stdout=-1, stderr=-1, text=True)
    _wait(lambda: first.poll() is not None or list(run.glob("progress/*/*/*.parquet")), 90, "a shard")
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=30)
    assert first.returncode == 130, out + err
    assert "generate ..." in out  # the job's log
    assert f"the job runs on; to follow it: ray job logs the-first --follow --address {head}" in err
    assert client.get_job_status("the-first") == JobStatus.RUNNING

    second = _submit(*words)
    assert second.returncode == 2
    assert f"job the-first is at work on {run}" in second.stderr

    client.stop_job("the-first")
    _wait(lambda: client.get_job_status("the-first").is_terminal(), 60, "the end of the job")
    before = stored(run)
    assert 0 < before <= 4
    assert "generations" not in json.loads((run / "manifest.json").read_text())

    # The same again, at full speed: what is stored stays as it is.
    third = _submit(*words)
    assert third.returncode == 0, third.stdout + third.stderr
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["generations"]["prompts"] == NUM_PROMPTS
    made = manifest["effort"][-1]["by_variant"]["small"]["requests"]
    assert made == manifest["generations"]["by_variant"]["small"]["completions"] * (NUM_PROMPTS - before) // NUM_PROMPTS
    jobs = [job.submission_id for job in client.list_jobs() if job.status == JobStatus.SUCCEEDED]
    assert len(jobs) == 1
    assert str(jobs[0]).startswith("a-run-2")  # the run's name and the time


def test_submit_without_the_token_is_one_line(head: str, recipe: Path) -> None:
    done = _submit(str(recipe), "--address", head, RAY_AUTH_MODE="disabled")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"submit: the cluster at {head} asks for its token; set RAY_AUTH_MODE=token")
    assert done.stderr.count("\n") == 1


def test_job_that_fails_gives_its_exit_code(head: str, recipe: Path) -> None:
    words = [str(recipe), "--address", head, "--submission-id", "the-failing", "--set", "prompts.source=/none.jsonl"]
    done = _submit(*words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "/none.jsonl" in done.stdout  # the factory's own line, from the job's log
    assert done.stderr == "submit: job the-failing ended as FAILED\n"

    again = _submit(*words)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith(f"submit: the cluster at {head} did not take the job (")
    assert "Job with submission_id the-failing already exists" in again.stderr
    assert again.stderr.count("\n") == 1


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe without a model, whose rows are stored one by one."""
    prompts = tmp_path / "prompts.jsonl"
    texts = [f"Question {i}?{' [[empty]]' if i < 4 else ''}" for i in range(NUM_PROMPTS)]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    path = tmp_path / "scripted.yaml"
    content = {
        "run": str(tmp_path / "a run"),
        "prompts": {"source": str(prompts)},
        "variants": {"small": {"engine": "scripted", "cpus": 1}},
        "strategies": {"prefix": {"variant": "small"}},
        "rows_per_task": 1,
    }
    path.write_text(yaml.safe_dump(content))
    return path


def _launch() -> dict[str, Any]:
    return dict(yaml.safe_load(LAUNCH.read_text(encoding="utf-8")))


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "cluster.submit", *words]


def _submit(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    env = {**ENVIRONMENT, **env}
    return subprocess.run(_command(*words), cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def _client(address: str) -> JobSubmissionClient:
    # get_address_for_submission_client reads the environment of this process, which other tests set too.
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
        return JobSubmissionClient(address, headers={"Authorization": f"Bearer {TOKEN}"})


def _answers(address: str) -> bool:
    try:
        _client(address).list_jobs()
    except (ConnectionError, RuntimeError):
        return False
    return True


def _wait(true: Callable[[], Any], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what} did not come within {seconds} s"
        time.sleep(0.2)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the head and all that it has started. Never `ray stop`: it ends every Ray of the machine."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    process.terminate()
    _, left = psutil.wait_procs([psutil.Process(process.pid), *family], timeout=5)
    for each in left:
        each.kill()
    process.wait()
