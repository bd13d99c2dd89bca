"""Measurements behind docs/benchmarks.md: `make bench`. Ratios of things run in turn on the same machine.

throughput  the same requests with the same explicit engine sizes through one raw ``vllm.LLM`` call and through
            ``popalign generate``, in turn; tokens per second from the first request to the last completion ("steady":
            engine warm) and over the whole process ("whole": interpreter, Ray and engine start included).
jobs        what a user would do instead: six separate jobs, one a strategy, each with raw ``vllm.LLM`` calls and its
            own engine starts, against one run of all six: seconds and new tokens.
scale       the scripted engine, so that only the data plane is measured: prompts per second through ``generate`` and
            ``pairs``, and the driver's peak memory, at growing numbers of prompts.
nodes       the scripted engine on Ray clusters of 1, 2 and 4 nodes of one CPU, all on this machine.
probe       what ``plan --probe`` predicts for the time of ``generate``, against what it then takes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
POPALIGN = (sys.executable, "-m", "factory")
THROUGHPUT: dict[str, Any] = {
    "seed": 0,
    "preset": "leaderboard",
    "prompts": {"source": "builtin:demo"},
    "sampling": {"temperature": 0.7, "top_p": 1.0, "max_tokens": 96, "min_tokens": 16},
    "variants": {
        "strong": {
            "model": "embedded:smollm2-135m",
            "dtype": "float32",
            "max_model_len": 2048,
            "max_num_seqs": 64,
            "max_num_batched_tokens": 4096,
        }
    },
    # Strategies whose requests do not wait for each other: one raw call can hold them all.
    "strategies": {name: {"variant": "strong"} for name in ("prefix", "demon", "elicitive")},
}
EMBEDDED = {"dtype": "float32", "max_model_len": 2048, "max_num_seqs": 64}
ALL_SIX: dict[str, Any] = {
    **THROUGHPUT,
    "sampling": {**THROUGHPUT["sampling"], "stop": ["\n\n"]},
    "variants": {
        "strong": {"model": "embedded:smollm2-135m", **EMBEDDED},
        "second": {"model": "embedded:smollm2-120m", **EMBEDDED},
        "small": {"model": "embedded:smollm2-113m", **EMBEDDED},
    },
    "strategies": {
        "prefix": {"variant": "strong"},
        "demon": {"variant": "strong"},
        "elicitive": {"variant": "strong", "format": "forced", "thought_tokens": 32},
        "nparam": {"chosen": "strong", "rejected": "small"},
        "leaderboard": {"ladder": ["strong", "second"]},
        "refine": {"variant": "strong", "format": "forced", "thought_tokens": 32},
    },
    "schedule": "phased",
}
NODE_PROMPTS = 2_000
NODE_SPEED = 40.0  # tokens a second of one sequence
KINDS = ("throughput", "jobs", "scale", "nodes", "probe")
SCRIPTED: dict[str, Any] = {
    "sampling": {"max_tokens": 64},
    "variants": {name: {"engine": "scripted", "max_num_seqs": 256} for name in ("strong", "small", "second")},
    "strategies": {
        "prefix": {"variant": "strong"},
        "demon": {"variant": "strong"},
        "elicitive": {"variant": "strong"},
        "nparam": {"chosen": "strong", "rejected": "small"},
        "leaderboard": {"ladder": ["strong", "second"]},
        "refine": {"variant": "strong"},
    },
}
SCALE_CPUS = 4  # logical: room for the three pools at once, so that the plan streams


def main() -> None:
    """Run what was asked for and print it as text and, at the end, as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"of {', '.join(KINDS)}; default: all")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--probe", type=int, default=16)
    parser.add_argument("--raw", metavar="RECIPE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.raw:
        print(json.dumps(raw(arguments.raw)))
        return
    if unknown := set(arguments.what) - set(KINDS):
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(KINDS)}")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="popalign-bench-") as temporary:
        folder = Path(temporary)
        for what in arguments.what or KINDS:
            if what == "scale":
                results[what] = [scale(folder, size) for size in arguments.sizes]
            elif what == "nodes":
                results[what] = nodes(folder, arguments.repetitions)
            elif what == "probe":
                results[what] = probe(folder, arguments.repetitions, arguments.probe)
            else:
                results[what] = {"throughput": throughput, "jobs": jobs}[what](folder, arguments.repetitions)
    print(json.dumps(results))


def throughput(folder: Path, repetitions: int) -> dict[str, Any]:
    """Raw and factory in turn; medians and spread."""
    rows = []
    for i in range(repetitions):
        recipe = _recipe(folder / f"throughput-{i}.yaml", {**THROUGHPUT, "run": str(folder / f"throughput-{i}")})
        baseline = json.loads(_run([sys.executable, __file__, "--raw", str(recipe)])[0].splitlines()[-1])
        ours = _factory(recipe)
        effort = _manifest(folder / f"throughput-{i}")["effort"][-1]["by_variant"]["strong"]
        ours |= {"tokens": effort["tokens"], "steady_s": effort["seconds"]}
        for side in (baseline, ours):
            side["steady"] = side["tokens"] / side["steady_s"]
            side["whole"] = side["tokens"] / side["whole_s"]
        rows.append({"raw": baseline, "factory": ours})
        print(f"repetition {i + 1}: raw {_rates(baseline)}; factory {_rates(ours)}", flush=True)
    out = {}
    for kind in ("steady", "whole"):
        out[kind] = _summary([row["factory"][kind] / row["raw"][kind] for row in rows])
        print(f"factory / raw, {kind}: {_spread(out[kind])}")
    return {"ratios": out, "runs": rows}


def raw(recipe: str) -> dict[str, float]:
    """The requests of a recipe through raw ``vllm.LLM`` calls: an engine for each variant, one after another, and a
    call for each round of requests whose answers do not wait for each other."""
    started = time.monotonic()
    sys.path.insert(0, str(ROOT))
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    from factory.cookbook import order
    from factory.engine.vllm import engine_args, sampling_params
    from factory.model import load_tokenizer, render, resolve
    from factory.plan import passes_of, unique
    from factory.prompt import parse, read
    from factory.request import build
    from strategies.reading import answer

    wanted = order(recipe)
    rows = []
    for _, content in read(wanted.recipe.prompts):
        prompt, _ = parse(content)
        rows.append(unique(strategy.contrast(prompt) for strategy in wanted.strategies))
    from vllm import LLM

    answers: list[dict[str, str]] = [{} for _ in rows]
    tokens = steady = 0.0
    for name, _ in passes_of(generation for row in rows for generation in row.values()):
        variant = wanted.recipe.variants[name]
        variant = variant.model_copy(update={"model": resolve(variant)})
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = f"{variant.kv_cache_gib:g}"
        tokenizer = load_tokenizer(name, variant)
        arguments = engine_args(variant, on_cpu=True)
        names = ("model", "dtype", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size")
        names += ("enforce_eager", "enable_chunked_prefill", "enable_prefix_caching", "disable_log_stats")
        llm = LLM(**{key: getattr(arguments, key) for key in names})
        defaults = llm.llm_engine.model_config.get_diff_sampling_param()
        defaults.pop("max_tokens", None)
        pending = [(i, g) for i, row in enumerate(rows) for g in row.values() if g.variant == name]
        while pending:
            now = [(i, g) for i, g in pending if all(reply.id in answers[i] for reply in g.replies)]
            if not now:  # what they reply to could not be read
                break
            pending = [(i, g) for i, g in pending if g.id not in {other.id for j, other in now if j == i}]
            requests = [
                build(g, answers[i], run_seed=wanted.recipe.seed, sampling=wanted.recipe.sampling, variant=variant)
                for i, g in now
            ]
            prompts = [{"prompt_token_ids": render(tokenizer, r.messages, r.prefill)} for r in requests]
            parameters = [sampling_params(r.sampling, defaults, r.seed) for r in requests]
            warm = time.monotonic()
            outputs = llm.generate(prompts, parameters, use_tqdm=False)
            steady += time.monotonic() - warm
            for (i, g), request, output in zip(now, requests, outputs, strict=True):
                tokens += len(output.outputs[0].token_ids)
                text = answer(output.outputs[0].text, g.read, request.prefill)
                if text is not None:
                    answers[i][g.id] = text
        del llm
    return {"tokens": tokens, "steady_s": steady, "whole_s": time.monotonic() - started}


def jobs(folder: Path, repetitions: int) -> dict[str, Any]:
    """Six jobs and one run in turn: seconds of all processes, and new tokens."""
    rows = []
    for i in range(repetitions):
        run = folder / f"jobs-{i}"
        recipe = _recipe(folder / f"jobs-{i}.yaml", {**ALL_SIX, "run": str(run)})
        alone = {"whole_s": 0.0, "tokens": 0.0}
        for name, settings in ALL_SIX["strategies"].items():
            own = _recipe(folder / f"{name}.yaml", {**ALL_SIX, "run": "none", "strategies": {name: settings}})
            started = time.monotonic()
            job = json.loads(_run([sys.executable, __file__, "--raw", str(own)])[0].splitlines()[-1])
            alone["whole_s"] += time.monotonic() - started
            alone["tokens"] += job["tokens"]
        ours = _factory(recipe)
        ours["tokens"] = sum(v["tokens"] for v in _manifest(run)["generations"]["by_variant"].values())
        rows.append({"jobs": alone, "factory": ours})
        print(f"repetition {i + 1}: six jobs {_cost(alone)}; one run {_cost(ours)}", flush=True)
    out = {}
    for kind in ("whole_s", "tokens"):
        out[kind] = _summary([row["jobs"][kind] / row["factory"][kind] for row in rows])
        print(f"six jobs / one run, {kind}: {_spread(out[kind])}")
    return {"ratios": out, "runs": rows}


def scale(folder: Path, size: int) -> dict[str, Any]:
    """The scripted engine over so many made-up prompts."""
    source = _prompts(folder / f"prompts-{size}.jsonl", size)
    run = folder / f"scale-{size}"
    content = {**SCRIPTED, "run": str(run), "prompts": {"source": str(source)}, "schedule": "streaming"}
    recipe = _recipe(folder / f"scale-{size}.yaml", content)
    generate = _driver(["generate", str(recipe), "--cpus", str(SCALE_CPUS)])
    pairs = _driver(["pairs", str(run)])
    row = {
        "prompts": size,
        "generate_prompts_per_s": size / generate["whole_s"],
        "pairs_prompts_per_s": size / pairs["whole_s"],
        "ms_per_prompt": 1000 * (generate["whole_s"] + pairs["whole_s"]) / size,
        "generate_driver_peak_mib": generate["peak_mib"],
        "pairs_driver_peak_mib": pairs["peak_mib"],
        "files": sum(1 for path in run.rglob("*.parquet")),
        "bytes": sum(path.stat().st_size for path in run.rglob("*.parquet")),
    }
    print(
        f"{size:>9,} prompts: generate {row['generate_prompts_per_s']:,.0f}/s, pairs {row['pairs_prompts_per_s']:,.0f}"
        f"/s, {row['ms_per_prompt']:.2f} ms a prompt; driver at most {row['generate_driver_peak_mib']:,.0f} and "
        f"{row['pairs_driver_peak_mib']:,.0f} MiB; {row['files']} files",
        flush=True,
    )
    shutil.rmtree(run)
    return row


def nodes(folder: Path, repetitions: int) -> list[dict[str, Any]]:
    """Time of the generating itself on clusters of 1, 2 and 4 nodes of one CPU; every variant has a replica on each.

    With an engine that takes its time (as one on a GPU does) and with one that takes none.
    """
    sys.path.insert(0, str(ROOT))
    from ray.cluster_utils import Cluster

    rows = []
    source = _prompts(folder / "prompts-nodes.jsonl", NODE_PROMPTS)
    for number in (1, 2, 4):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(number):
            cluster.add_node(num_cpus=1)
        try:
            for speed in (NODE_SPEED, None):
                seconds = []
                for i in range(repetitions):
                    run = folder / f"nodes-{number}-{speed}-{i}"
                    more = {"engine": "scripted", "max_num_seqs": 64, "replicas": number, "speed": speed}
                    content = {**SCRIPTED, "variants": dict.fromkeys(("strong", "small", "second"), more)}
                    content |= {"run": str(run), "prompts": {"source": str(source)}, "schedule": "phased"}
                    recipe = _recipe(folder / "nodes.yaml", content)
                    _driver(["generate", str(recipe)], RAY_ADDRESS=cluster.address)
                    seconds.append(_manifest(run)["effort"][-1]["seconds"])
                rate = _summary([NODE_PROMPTS / each for each in seconds])
                rows.append({"nodes": number, "speed": speed, "prompts_per_s": rate})
                print(f"{number} nodes, speed {speed}: {_spread(rate)} prompts/s", flush=True)
        finally:
            cluster.shutdown()
    return rows


def probe(folder: Path, repetitions: int, number: int) -> dict[str, Any]:
    """Predicted and measured seconds of ``generate`` on the demonstration's recipe."""
    rows = []
    for i in range(repetitions):
        where = ["--set", f"run={folder / f'probe-{i}'}"]
        found = json.loads(_run([*POPALIGN, "plan", "demo", *where, "--probe", str(number), "--json"])[0])
        _run([*POPALIGN, "generate", "demo", *where])
        manifest = _manifest(folder / f"probe-{i}")
        measured = manifest["effort"][-1]["seconds"]
        tokens = sum(v["tokens"] for v in manifest["generations"]["by_variant"].values())
        expected = sum(v["new_tokens"]["value"] for v in found["variants"])
        row = {"seconds": found["seconds"], "measured_s": measured, "ratio": found["seconds"]["value"] / measured}
        row |= {"new_tokens": expected, "measured_tokens": tokens}
        rows.append(row)
        print(f"repetition {i + 1}: {row['ratio']:.3f} of {measured:.0f} s; {expected / tokens:.3f} of the tokens")
    out = _summary([row["ratio"] for row in rows])
    print(f"predicted / measured seconds of generate: {_spread(out)}")
    return {"ratio": out, "runs": rows}


def _prompts(path: Path, number: int) -> Path:
    with path.open("w") as file:
        for i in range(number):
            file.write(json.dumps({"prompt": f"Prompt {i}: " + "say something useful about this subject. " * 5}) + "\n")
    return path


def _manifest(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "manifest.json").read_text()))


def _factory(recipe: Path) -> dict[str, float]:
    return _driver(["generate", str(recipe)])


def _driver(arguments: list[str], **environment: str) -> dict[str, float]:
    """Run a command of ours; its wall time and the peak memory of its driver process alone."""
    started = time.monotonic()
    _, peak = _run([*POPALIGN, *arguments], **environment)
    return {"whole_s": time.monotonic() - started, "peak_mib": peak}


def _run(command: Sequence[str], **environment: str) -> tuple[str, float]:
    """A command's standard output, and the peak resident memory of its first process in MiB."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=out, stderr=errors, text=True
        )
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, _peak_mib(process.pid))
            time.sleep(0.2)
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{out.read()[-3000:]}\n{errors.read()[-3000:]}")
        return out.read(), peak


def _peak_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def _recipe(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def _rates(side: dict[str, float]) -> str:
    return f"{side['steady']:,.0f} tokens/s steady, {side['whole']:,.0f} whole ({side['tokens']:,} tokens)"


def _cost(side: dict[str, float]) -> str:
    return f"{side['whole_s']:,.0f} s, {side['tokens']:,.0f} new tokens"


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.4g} (from {ratio['min']:.4g} to {ratio['max']:.4g})"


if __name__ == "__main__":
    main()
