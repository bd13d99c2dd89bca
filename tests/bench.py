"""Measurements behind docs/benchmarks.md: `make bench`. Ratios of things run in turn on the same machine.

1. Throughput: the same requests with the same explicit engine sizes through one raw ``vllm.LLM`` call and through
   ``popalign generate``, in turn; tokens per second from the first request to the last completion ("steady": engine
   warm) and over the whole process ("whole": interpreter, Ray and engine start included).
2. Overhead: the scripted engine, so that only the data plane is measured: prompts per second through ``generate`` and
   ``pairs``, and the driver's peak memory, at growing numbers of prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
THROUGHPUT = {
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
SCRIPTED = {
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
    "schedule": "phased",
    "rows_per_task": 128,
}


def main() -> None:
    """Run what was asked for and print it as text and, at the end, as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["throughput", "overhead"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--raw", metavar="RECIPE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.raw:
        print(json.dumps(raw(arguments.raw)))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="popalign-bench-") as temporary:
        if arguments.only != "overhead":
            results["throughput"] = throughput(Path(temporary), arguments.repetitions)
        if arguments.only != "throughput":
            results["overhead"] = [overhead(Path(temporary), size) for size in arguments.sizes]
    print(json.dumps(results))


def throughput(folder: Path, repetitions: int) -> dict[str, Any]:
    """Raw and factory in turn; medians and spread."""
    rows = []
    for i in range(repetitions):
        recipe = _recipe(folder / f"throughput-{i}.yaml", {**THROUGHPUT, "run": str(folder / f"throughput-{i}")})
        baseline = json.loads(_run([sys.executable, __file__, "--raw", str(recipe)])[0].splitlines()[-1])
        ours = _factory(recipe)
        facts = json.loads((folder / f"throughput-{i}" / "manifest.json").read_text())["generations"]["by_variant"]
        ours |= {"tokens": facts["strong"]["tokens"], "steady_s": facts["strong"]["seconds"]}
        for side in (baseline, ours):
            side["steady"] = side["tokens"] / side["steady_s"]
            side["whole"] = side["tokens"] / side["whole_s"]
        rows.append({"raw": baseline, "factory": ours})
        print(f"repetition {i + 1}: raw {_rates(baseline)}; factory {_rates(ours)}", flush=True)
    out = {}
    for kind in ("steady", "whole"):
        ratios = [row["factory"][kind] / row["raw"][kind] for row in rows]
        out[kind] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        print(f"factory / raw, {kind}: {_spread(out[kind])}")
    return {"ratios": out, "runs": rows}


def raw(recipe: str) -> dict[str, float]:
    """One ``vllm.LLM`` call over the requests of a recipe, in a process of its own."""
    started = time.monotonic()
    sys.path.insert(0, str(ROOT))
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    from factory.cookbook import order
    from factory.engine.vllm import engine_args, sampling_params
    from factory.model import load_tokenizer, render, resolve
    from factory.plan import unique
    from factory.prompt import parse, read
    from factory.request import build

    wanted = order(recipe)
    variant = wanted.recipe.variants["strong"]
    variant = variant.model_copy(update={"model": resolve(variant)})
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = f"{variant.kv_cache_gib:g}"
    tokenizer = load_tokenizer("strong", variant)
    requests = []
    for _, content in read(wanted.recipe.prompts):
        prompt, _ = parse(content)
        for generation in unique(strategy.contrast(prompt) for strategy in wanted.strategies).values():
            requests.append(
                build(generation, {}, run_seed=wanted.recipe.seed, sampling=wanted.recipe.sampling, variant=variant)
            )
    from vllm import LLM

    arguments = engine_args(variant, on_cpu=True)
    names = ("model", "dtype", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size")
    names += ("enforce_eager", "enable_chunked_prefill", "enable_prefix_caching", "disable_log_stats")
    llm = LLM(**{name: getattr(arguments, name) for name in names})
    defaults = llm.llm_engine.model_config.get_diff_sampling_param()
    defaults.pop("max_tokens", None)
    prompts = [{"prompt_token_ids": render(tokenizer, r.messages, r.prefill)} for r in requests]
    parameters = [sampling_params(r.sampling, defaults, r.seed) for r in requests]
    warm = time.monotonic()
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    ended = time.monotonic()
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    return {"tokens": tokens, "steady_s": ended - warm, "whole_s": ended - started}


def overhead(folder: Path, size: int) -> dict[str, Any]:
    """The scripted engine over so many made-up prompts."""
    source = folder / f"prompts-{size}.jsonl"
    with source.open("w") as file:
        for i in range(size):
            file.write(json.dumps({"prompt": f"Prompt {i}: " + "say something useful about this subject. " * 5}) + "\n")
    run = folder / f"overhead-{size}"
    recipe = _recipe(
        folder / f"overhead-{size}.yaml", {**SCRIPTED, "run": str(run), "prompts": {"source": str(source)}}
    )
    generate = _factory(recipe)
    pairs = _driver(["pairs", str(run)])
    manifest = json.loads((run / "manifest.json").read_text())
    row = {
        "prompts": size,
        "generate_prompts_per_s": size / manifest["generations"]["seconds"],
        "pairs_prompts_per_s": size / manifest["pairs"]["seconds"],
        "ms_per_prompt": 1000 * (manifest["generations"]["seconds"] + manifest["pairs"]["seconds"]) / size,
        "driver_peak_mib": max(generate["peak_mib"], pairs["peak_mib"]),
    }
    print(
        f"{size:>9,} prompts: generate {row['generate_prompts_per_s']:,.0f}/s, pairs {row['pairs_prompts_per_s']:,.0f}"
        f"/s, {row['ms_per_prompt']:.2f} ms a prompt, driver {row['driver_peak_mib']:,.0f} MiB at most",
        flush=True,
    )
    return row


def _factory(recipe: Path) -> dict[str, float]:
    return _driver(["generate", str(recipe)])


def _driver(arguments: list[str]) -> dict[str, float]:
    """Run a command of ours; its wall time and the peak memory of its driver process alone."""
    started = time.monotonic()
    _, peak = _run([sys.executable, "-m", "factory", *arguments])
    return {"whole_s": time.monotonic() - started, "peak_mib": peak}


def _run(command: list[str]) -> tuple[str, float]:
    """A command's standard output, and the peak resident memory of its first process in MiB."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=errors, text=True)
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


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} (from {ratio['min']:.3f} to {ratio['max']:.3f})"


if __name__ == "__main__":
    main()
