"""What goes wrong with a job of days: killed drivers, replicas that die or freeze, poison, full disks, lost nodes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from running import ROOT, begin, generations, identities, popalign, scripted, stored, until

from factory.run import Run, damaged

NUM = 200
# The strong variant takes a quarter of a minute for them: 20 words in a completion, 100 words a second, 4 rows at once.
SLOW = ["--set", "variants.strong.speed=100", "--set", "variants.strong.max_num_seqs=16", "--set", "rows_per_task=8"]


def manifest(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "manifest.json").read_text()))


def faults(run: Path) -> list[dict[str, Any]]:
    return [fault for effort in manifest(run)["effort"] for fault in effort["faults"]]


def pids(run: Path, variant: str = "strong") -> set[int]:
    """Processes of a variant's replicas: each has a log of its own."""
    return {int(path.stem.rpartition("-")[2]) for path in (run / "logs").glob(f"pool-{variant}-*.log")}


def require_whole(run: Path, num_prompts: int) -> None:
    """Every prompt has its row once, with all completions, and the pairs balance."""
    rows = generations(run)
    assert len({row["prompt_id"] for row in rows}) == len(rows) == num_prompts
    assert {len({c["generation_id"] for c in row["completions"]}) for row in rows} == {10}
    done = popalign("pairs", str(run))
    assert done.returncode == 0, done.stderr
    for outcomes in manifest(run)["pairs"]["strategies"].values():
        assert outcomes["kept"] + sum((outcomes["rejected"] | outcomes["failed"]).values()) == num_prompts
    assert damaged(Run.open(run)) == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, int]]]:
    """What a run that nothing interrupts asks for."""
    folder = tmp_path_factory.mktemp("whole")
    done = popalign("generate", str(scripted(folder, NUM)))
    assert done.returncode == 0, done.stderr
    return identities(folder / "run")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without CPUs and three nodes of one, each with processes of its own."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(3):
        nodes.add_node(num_cpus=1)
    yield nodes
    nodes.shutdown()


def test_driver_killed_at_10_50_and_90_percent_repeats_only_what_was_in_flight(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    recipe, run = scripted(tmp_path, NUM), tmp_path / "run"
    for percent in (10, 50, 90):
        process = begin("generate", str(recipe), *SLOW)
        until(lambda percent=percent: stored(run) * 100 >= NUM * percent, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    before = stored(run)
    assert before < NUM, "it was killed too late to show anything"
    done = popalign("generate", str(recipe), *SLOW)
    assert done.returncode == 0, done.stderr
    assert identities(run) == whole
    assert manifest(run)["effort"][-1]["by_variant"]["strong"]["requests"] == 8 * (NUM - before)
    require_whole(run, NUM)


def test_driver_killed_on_three_nodes_resumes_without_loss(
    tmp_path: Path, cluster: Cluster, whole: dict[str, Any]
) -> None:
    recipe, run = scripted(tmp_path, NUM), tmp_path / "run"
    arguments = ["generate", str(recipe), *SLOW, "--set", "schedule=streaming"]
    process = begin(*arguments, RAY_ADDRESS=cluster.address)
    until(lambda: stored(run, 3) >= 100, process, seconds=240)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = popalign(*arguments, RAY_ADDRESS=cluster.address)
    assert done.returncode == 0, done.stderr
    assert identities(run) == whole


def test_node_that_goes_away_costs_only_what_was_in_flight(
    tmp_path: Path, cluster: Cluster, whole: dict[str, Any]
) -> None:
    recipe, run = scripted(tmp_path, NUM), tmp_path / "run"
    process = begin("generate", str(recipe), *SLOW, "--set", "variants.strong.replicas=3", RAY_ADDRESS=cluster.address)
    until(lambda: stored(run) >= 50, process)
    cluster.remove_node(sorted(cluster.worker_nodes, key=lambda node: node.unique_id)[0], allow_graceful=False)
    error = process.communicate(timeout=240)[1]
    assert process.returncode == 0, error
    assert any("node was lost" in fault["what"] for fault in faults(run))
    assert identities(run) == whole


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_replica_that_dies_or_freezes_is_replaced(tmp_path: Path, blow: signal.Signals, whole: dict[str, Any]) -> None:
    recipe, run = scripted(tmp_path, NUM), tmp_path / "run"
    process = begin("generate", str(recipe), *SLOW, "--set", "variants.strong.deadline=6")
    until(lambda: stored(run) >= 50, process)
    (pid,) = pids(run)
    os.kill(pid, blow)
    error = process.communicate(timeout=240)[1]
    assert process.returncode == 0, error
    (fault,) = faults(run)
    assert ("died" if blow == signal.SIGKILL else "no sign of life") in fault["what"]
    assert fault["lost_s"] > (0 if blow == signal.SIGKILL else 6)
    assert not Path(f"/proc/{pid}").exists()
    assert identities(run) == whole


def test_prompts_that_kill_or_hang_their_engine_twice_are_set_aside(tmp_path: Path) -> None:
    recipe = scripted(tmp_path, 40, extra=["Please [[die]] now.", "Please [[hang]] now."])
    run = tmp_path / "run"
    done = popalign("generate", str(recipe), *SLOW, "--set", "variants.strong.deadline=6")
    assert done.returncode == 0, done.stderr
    failed = {
        str(row["prompt"][-1]["content"]): completion["error"]
        for row in generations(run)
        for completion in row["completions"]
        if completion["error"] is not None and completion["variant"] == "strong"
    }
    assert set(failed) == {"Please [[die]] now.", "Please [[hang]] now."}
    assert all(error.startswith("engine_died: set aside") for error in failed.values())
    assert manifest(run)["generations"]["by_variant"]["strong"]["failed"] == {"engine_died": 16}
    assert len(faults(run)) >= 4
    require_whole(run, 42)


def test_engines_that_only_die_end_the_run_with_the_reason(tmp_path: Path) -> None:
    recipe = scripted(tmp_path, 0, extra=[f"[[die]] {i}" for i in range(16)])
    done = popalign("generate", str(recipe), "--set", "rows_per_task=4")
    # Each death finds a culprit, so all are set aside one after another, until too many have failed.
    assert done.returncode == 1
    assert "max_failure_rate" in done.stderr or "in a row were lost" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_too_many_failures_stop_the_run_early_with_the_reason(tmp_path: Path) -> None:
    recipe = scripted(tmp_path, 100, extra=[f"[[error]] {i}" for i in range(300)])
    done = popalign("generate", str(recipe), *SLOW, "--set", "max_failure_rate=0.2")
    assert done.returncode == 1
    assert "more than max_failure_rate 0.2" in done.stderr and "scripted" in done.stderr
    assert manifest(tmp_path / "run")["effort"][-1]["ended"] == "failed"


def test_ctrl_c_stores_what_is_in_flight_and_says_how_to_go_on(tmp_path: Path, whole: dict[str, Any]) -> None:
    recipe, run = scripted(tmp_path, NUM), tmp_path / "run"
    process = begin("generate", str(recipe), *SLOW)
    until(lambda: stored(run) >= 50, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the command and all that it started
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "waiting for" in out and "go on with: popalign generate" in error
    assert f"of {NUM} prompts are stored" in error
    done = popalign("generate", str(recipe), *SLOW)
    assert done.returncode == 0, done.stderr
    made = sum(effort["by_variant"]["strong"]["requests"] for effort in manifest(run)["effort"])
    assert made == 8 * NUM, "a prompt was made twice, or one that was begun was not stored"
    assert identities(run) == whole


def test_budget_stops_cleanly_and_the_same_command_goes_on(tmp_path: Path) -> None:
    recipe, run = scripted(tmp_path, NUM), tmp_path / "run"
    done = popalign("generate", str(recipe), *SLOW, "--max-hours", "0.002")
    assert done.returncode == 1
    assert "budget of 0.002 hours" in done.stderr and "prompts are stored" in done.stderr
    assert "not complete" in popalign("status", str(run)).stdout
    assert popalign("generate", str(recipe)).returncode == 0
    require_whole(run, NUM)


@pytest.mark.soak
def test_schedule_may_change_between_a_stop_and_its_resumption(tmp_path: Path, whole: dict[str, Any]) -> None:
    recipe, run = scripted(tmp_path, NUM), tmp_path / "run"
    process = begin("generate", str(recipe), *SLOW, "--cpus", "4", "--set", "schedule=phased")
    until(lambda: stored(run, 1) >= 50, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    left = NUM - len(set(_ids(run, 1)))
    done = popalign("generate", str(recipe), *SLOW, "--cpus", "4", "--set", "schedule=streaming")
    assert done.returncode == 0, done.stderr
    assert manifest(run)["effort"][-1]["by_variant"]["strong"]["requests"] == 8 * left
    assert identities(run) == whole


def _ids(run: Path, passed: int) -> list[str]:
    import pyarrow.parquet as pq

    files = (run / "progress").glob(f"*/{passed}/*.parquet")
    return [i for file in files for i in pq.read_table(file, columns=["prompt_id"]).column(0).to_pylist()]


def test_full_disk_ends_with_the_reason_and_goes_on_with_room(tmp_path: Path) -> None:
    """In a mount namespace of its own, where the run directory is a disk of 400 KiB."""
    inside = "mount -t tmpfs -o size=400k tmpfs {run} && {command}; code=$?; cp -a {run} {copy}; exit $code"
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespaces")
    recipe, run, copy = scripted(tmp_path, 1500), tmp_path / "run", tmp_path / "copy"
    run.mkdir()
    command = f"{sys.executable} -m factory generate {recipe}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", inside.format(run=run, command=command, copy=copy)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2, done.stderr
    assert "No space left on device" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    shutil.rmtree(run)
    shutil.copytree(copy, run)
    done = popalign("generate", str(recipe))
    assert done.returncode == 0, done.stderr
    require_whole(run, 1500)


def test_added_strategy_generates_only_what_is_missing(tmp_path: Path, whole: dict[str, Any]) -> None:
    recipe, run = scripted(tmp_path, NUM), tmp_path / "run"
    few = [part for name in ("nparam", "leaderboard", "refine") for part in ("--set", f"strategies.{name}=null")]
    assert popalign("generate", str(recipe), *few).returncode == 0
    done = popalign("generate", str(recipe))
    assert done.returncode == 0, done.stderr
    made = {name: total["requests"] for name, total in manifest(run)["effort"][-1]["by_variant"].items()}
    assert made == {"strong": 2 * NUM, "small": NUM, "second": NUM}  # the bare answer and its revision; the rivals
    assert identities(run) == whole
    require_whole(run, NUM)


def test_changed_recipe_that_would_change_data_is_refused(tmp_path: Path) -> None:
    recipe, run = scripted(tmp_path, 10), tmp_path / "run"
    assert popalign("generate", str(recipe)).returncode == 0
    for change, said in (
        ("sampling.max_tokens=7", "sampling.max_tokens was 1024 and is 7"),
        ("variants.small.model=other", "variants.small.model was 'scripted' and is 'other'"),
    ):
        done = popalign("generate", str(recipe), "--set", change)
        assert done.returncode == 2
        assert said in done.stderr
    operational = ["variants.strong.replicas=2", "variants.strong.deadline=60", "rows_per_task=3"]
    done = popalign("generate", str(recipe), *(part for key in operational for part in ("--set", key)))
    assert done.returncode == 0, done.stderr
    assert len(generations(run)) == 10


def test_second_command_on_a_run_at_work_is_refused(tmp_path: Path) -> None:
    recipe, run = scripted(tmp_path, NUM), tmp_path / "run"
    process = begin("generate", str(recipe), *SLOW)
    until(lambda: stored(run) >= 8, process)
    done = popalign("generate", str(recipe))
    assert done.returncode == 1
    assert "another popalign command is at work" in done.stderr
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_status_verify_names_the_damaged_file(tmp_path: Path) -> None:
    recipe, run = scripted(tmp_path, 10), tmp_path / "run"
    assert popalign("generate", str(recipe)).returncode == 0
    (shard,) = (run / "generations").glob("*/*.parquet")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    done = popalign("status", str(run), "--verify")
    assert done.returncode == 1
    assert f"{shard} differs from its checksum" in done.stderr
