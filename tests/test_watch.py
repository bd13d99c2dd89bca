"""Watching a run: figures from looks at the board, the live table, the line every 30 s, Prometheus and Grafana."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from rich.console import Console
from running import ROOT, begin, popalign, scripted, stored, until, variables

from factory.board import Fault, Totals, View
from factory.figure import Figures, Pace, Rates
from factory.metric import COUNTERS, GAUGES, Metrics
from factory.terminal import Bar, Lines, Terminal, variants_table

DASHBOARD = ROOT / "cluster" / "grafana.json"
SLOW = ["--set", "variants.strong.speed=100", "--set", "variants.strong.max_num_seqs=16", "--set", "rows_per_task=8"]
FIGURES = Figures(
    prompts=150,
    wanted=400,
    completions=1_200,
    failed=3,
    tokens_in=811.6,
    tokens_out=430.2,
    queue=16,
    serving=1,
    starting=1,
    cache_hits=0.434,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def view(**totals: Totals) -> View:
    return View(totals=totals, faults=[], silent=[], cards=[], end=None)


def test_rates_are_of_the_last_ten_seconds_and_counts_of_the_step() -> None:
    clock = Clock()
    rates = Rates({"strong": 400, "small": 400}, clock)
    # The step before has made 100 completions.
    before = Totals(prompts=100, requests=100, prompt_tokens=1_000, tokens=2_000, cached_tokens=1_000)
    figures = rates.look(view(strong=before))
    assert figures["strong"] == Figures(0, 400, 0, 0, 0.0, 0.0, 0, 0, 0, None)
    assert figures["small"] == figures["strong"]  # the board has not heard of it yet
    for second in range(1, 31):  # 10 prompt tokens a second for 20 s, then 40
        clock.now += 1
        asked = 10 * min(second, 20) + 40 * max(0, second - 20)
        made = Totals(
            prompts=100 + second,
            requests=100 + 2 * second,
            failed=second // 10,
            prompt_tokens=1_000 + asked,
            tokens=2_000 + 5 * second,
            cached_tokens=1_000 + asked // 4,
            waiting=7,
            replicas=2,
            starting=1,
        )
        figures = rates.look(view(strong=made))
        if second == 20:
            assert figures["strong"].tokens_in == 10
    assert figures["strong"] == Figures(30, 400, 60, 3, 40.0, 5.0, 7, 2, 1, 0.25)


def test_rates_count_what_is_made_again_after_a_fault_as_no_progress() -> None:
    rates = Rates({"strong": 10})
    rates.look(view())
    assert rates.look(view(strong=Totals(prompts=12)))["strong"].prompts == 10


def test_pace_leaves_the_start_of_an_engine_out() -> None:
    pace = Pace(1_000)
    pace.update(0, 0.0)
    assert (pace.rate, pace.left) == (None, None)
    for second in range(60, 71):  # the first result after a minute, then 10 a second
        pace.update(10 * (second - 59), float(second))
    assert pace.rate == 10
    assert pace.left == (1_000 - 110) / 10
    pace.update(1_200, 71.0)  # with what was made twice
    assert (pace.done, pace.left) == (1_000, 0.0)


def test_pace_without_progress_promises_nothing() -> None:
    pace = Pace(100)
    for second in range(300):
        pace.update(min(second, 50), float(second))
    assert (pace.rate, pace.left) == (None, None)


def test_table_is_whole_in_80_columns() -> None:
    large = replace(FIGURES, prompts=99_999, wanted=99_999, completions=12_345_678, tokens_in=123_456.0, queue=1_234)
    for width in (80, 120):
        console = Console(file=StringIO(), record=True, width=width)
        console.print(variants_table({"strong": FIGURES, "a-variant-with-a-long-name": large}))
        _, head, strong, other = (line.rstrip() for line in console.export_text().splitlines())
        assert max(map(len, (head, strong, other))) <= width
        assert head.split() == ["variant", "prompts", "tions", "in/s", "out/s", "queue", "replicas", "hits", "failed"]
        assert strong.split() == ["strong", "150/400", "1,200", "812", "430", "16", "1", "(+1)", "43%", "3"]
        assert other.split()[1:] == ["99,999/99,999", "12.3M", "123k", "430", "1,234", "1", "(+1)", "43%", "3"]
        assert ("a-variant-with-a-long-name" in other) == (width == 120)


def test_bar_shows_the_pace_and_keeps_the_last_table() -> None:
    console = Console(file=StringIO(), record=True, width=80, force_terminal=True)
    with Bar(console, "generate (1 of 3)", 3_200, "completions") as bar:
        bar.update(1_200, figures={"strong": FIGURES})
        bar.say("a line that stays")
        bar.update(3_200)
    text = console.export_text()
    assert "a line that stays" in text
    assert "3200/3200" in text and "150/400" in text.rpartition("3200/3200")[2]


def test_lines_come_every_30_s_with_one_for_each_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = Clock(), []
    terminal = Terminal(quiet=True)
    monkeypatch.setattr(terminal, "say", said.append)
    with Lines(terminal, "generate", 3_200, "completions", clock) as lines:
        for second in range(1, 66):
            clock.now += 1
            lines.update(20 * second, figures={"strong": FIGURES, "small": replace(FIGURES, starting=0)})
    assert said == [
        "generate ...",
        "generate: 600/3,200 completions, 20.0 completions/s, 2 min 10 s left",
        "  strong: 150/400 prompts, 1,200 completions, 812 tokens/s in, 430 out, queue 16, replicas 1 (+1), "
        "cache hits 43%, failed 3",
        "  small: 150/400 prompts, 1,200 completions, 812 tokens/s in, 430 out, queue 16, replicas 1, "
        "cache hits 43%, failed 3",
        "generate: 1,200/3,200 completions, 20.0 completions/s, 1 min 40 s left",
        *said[2:4],
        "generate: 1,300/3,200 completions, took 1 min 5 s",
    ]


@pytest.mark.parametrize("stop", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_live_table_on_a_terminal_of_80_columns(tmp_path: Path, stop: bool) -> None:
    recipe, run = scripted(tmp_path, 60), tmp_path / "run"
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "factory", "generate", str(recipe), *SLOW],
        cwd=ROOT,
        env=variables({"TERM": "xterm"}),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    screen = b""
    while chunk := _read(leader):
        screen += chunk
        if stop and stored(run) >= 16:
            stop = False
            os.killpg(process.pid, signal.SIGINT)
    code = process.wait(timeout=60)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.decode()).replace("\r", "\n").splitlines()
    live = [line for line in lines if "generate (" in line or line.startswith(("variant ", "strong ", "small "))]
    assert max(map(len, live)) <= 80
    rows = [line.split() for line in lines if line.startswith("strong ")]
    assert any("0" not in row[3:6] and row[6] == "1" for row in rows), rows[-1]  # tokens in and out, queue; replicas
    assert any(re.search(r"\d completions/s, \d+ s left", line) for line in lines)
    if code:
        assert code == 130
        assert any("stopped by SIGINT: waiting for" in line for line in lines)
        assert any("go on with: popalign generate" in line for line in lines)
    else:
        assert rows[-1][:3] == ["strong", "60/60", "480"]


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 65_536)
    except OSError:  # the other side is closed
        return b""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head whose processes report their metrics every second, instead of every ten."""
    settings = {"num_cpus": 3, "_system_config": {"metrics_report_interval_ms": 1_000}}
    nodes = Cluster(initialize_head=True, head_node_args=settings)
    yield nodes
    nodes.shutdown()


@pytest.fixture
def port(cluster: Cluster) -> int:
    """Where the head serves its metrics."""
    found: int = cluster.head_node.metrics_export_port
    return found


def scraped(port: int) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """What Prometheus would read of ours: name -> tags -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for line in lines:
        if match := re.fullmatch(r"(ray_popalign_\w+)\{(.*)\} (\S+)", line):
            tags = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            ours = tuple((key, tags[key]) for key in ("run", "variant", "kind", "state") if key in tags)
            found.setdefault(match[1], {})[ours] = float(match[3])
    return found


@pytest.mark.soak
def test_prometheus_reads_what_the_manifest_says_at_the_end(tmp_path: Path, cluster: Cluster, port: int) -> None:
    extra = [f"[[error]] {i}" for i in range(5)] + ["[[die]]"]
    recipe, run = scripted(tmp_path, 94, extra=extra), tmp_path / "run"
    process = begin("generate", str(recipe), *SLOW, RAY_ADDRESS=cluster.address)
    seen: dict[str, Any] = {}

    def at_work() -> bool:
        seen.update(scraped(port))
        serving = seen.get("ray_popalign_replicas", {})
        return serving.get((("run", "run"), ("variant", "strong"), ("state", "serving"))) == 1 and (
            "ray_popalign_remaining_seconds" in seen
        )

    until(at_work, process)
    strong = (("run", "run"), ("variant", "strong"))
    assert 0 < seen["ray_popalign_queue"][strong] <= 1.5 * 16 + 8
    assert seen["ray_popalign_prompts_wanted"][strong] == 100
    assert 0 < seen["ray_popalign_prompts_left"][strong] <= 100
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    manifest = json.loads((run / "manifest.json").read_text())
    (effort,) = manifest["effort"]
    wanted = {
        "completions": {name: total["requests"] for name, total in effort["by_variant"].items()},
        "prompt_tokens": {name: total["prompt_tokens"] for name, total in effort["by_variant"].items()},
        "tokens": {name: total["tokens"] for name, total in effort["by_variant"].items()},
        "faults": dict(Counter(fault["variant"] for fault in effort["faults"])),
    }

    def counts() -> dict[str, dict[str, float]]:
        found = scraped(port)
        return {name: _by_variant(found.get(f"ray_popalign_{name}_total", {})) for name in wanted}

    until(lambda: counts() == wanted, seconds=20)
    failed = scraped(port)["ray_popalign_failed_total"]
    assert _by_variant(failed) == {name: total["failed"] for name, total in effort["by_variant"].items()}
    assert failed[*strong, ("kind", "scripted")] >= 5 * 7  # the eighth replies to an answer that is missing
    # What the scripted engine does not have: a prefix cache.
    assert out.count("(0% cache hits)") == 3
    manifest["generations"]["by_variant"]["strong"].update(prompt_tokens=2_000, cached_tokens=1_340)
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert "completions, 2,000 prompt tokens (67% cache hits)" in popalign("status", str(run)).stdout


def _by_variant(values: dict[tuple[tuple[str, str], ...], float]) -> dict[str, float]:
    out: Counter[str] = Counter()
    for tags, value in values.items():
        out[dict(tags)["variant"]] += int(value)
    return dict(out)


def test_every_metric_is_served_under_its_name(cluster: Cluster, port: int) -> None:
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        metrics, pace = Metrics("by-hand"), Pace(100)
        total = Totals(prompts=1, requests=2, prompt_tokens=30, tokens=40, cached_tokens=5, errors=Counter(bad=6))
        faults = [Fault("strong", "its process died", 1, time.time())]
        for _ in range(2):  # a count that has not grown is not added again
            metrics.show(replace(view(strong=total), faults=faults))
        pace.update(100, 0.0)
        metrics.show_step({"strong": FIGURES}, pace)
        names = {f"ray_{name}" for name in (*COUNTERS, *GAUGES)}

        def ours() -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
            return {
                name: mine
                for name, values in scraped(port).items()
                if (mine := {tags[1:]: value for tags, value in values.items() if tags[0] == ("run", "by-hand")})
            }

        until(lambda: ours().keys() == names, seconds=30)
        found = ours()
        strong = (("variant", "strong"),)
        assert found["ray_popalign_cached_tokens_total"] == {strong: 5}
        assert found["ray_popalign_failed_total"] == {(*strong, ("kind", "bad")): 6}
        assert found["ray_popalign_faults_total"] == {strong: 1}
        assert found["ray_popalign_prompts_left"] == {strong: 250}
        assert found["ray_popalign_remaining_seconds"] == {(): 0}
    finally:
        ray.shutdown()


def test_dashboard_shows_each_metric_and_no_other() -> None:
    text = DASHBOARD.read_text()
    assert set(re.findall(r"ray_popalign_\w+", text)) == {f"ray_{name}" for name in (*COUNTERS, *GAUGES)}


def test_dashboard_refers_to_its_own_variables_and_to_tags_that_there_are() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    variables_there = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables_there == {"datasource", "run"}
    tags = {name: {"run", *more} for name, (more, _) in (COUNTERS | GAUGES).items()}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            (by,) = set(re.findall(r"by \(([^)]*)\)", target["expr"]))
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert legend <= set(by.split(", "))
            for name in re.findall(r"ray_(popalign_\w+)", target["expr"]):
                assert set(by.split(", ")) <= tags[name], target["expr"]
                assert ("rate(" in target["expr"] or "increase(" in target["expr"]) == (name in COUNTERS)
