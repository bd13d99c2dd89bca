"""The probe of a plan: a few prompts on the real engines, and what all prompts would take by that.

A pool's time is taken apart as ``start + full + tail``: until its engine serves, while it has enough requests, and
while the last ones drain. Only the part in the middle grows with the number of prompts, so the probe's own start and
tail, which are most of a short run, are not multiplied.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from factory.cookbook import Order
from factory.figure import Figures
from factory.generate import Progress, generate
from factory.place import Place
from factory.plan import Plan, Stage
from factory.prompt import read
from factory.recipe import Prompts
from factory.run import Run
from factory.shard import parquet, shards
from factory.terminal import Meter
from factory.watch import Limits

LEVEL = 0.95  # of the intervals
RESAMPLES = 2_000
SEGMENTS = 5  # of the time at full load, whose rates are compared


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with the interval in which it lies."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Estimate:
        """All three multiplied."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def plus(self, other: Estimate) -> Estimate:
        """The sum; the intervals are taken to err together, which is the cautious way."""
        return Estimate(self.value + other.value, self.low + other.low, self.high + other.high)


NOTHING = Estimate(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Predicted:
    """What one variant will take over all prompts."""

    variant: str
    replicas: int
    completions: float
    prompt_tokens: Estimate
    new_tokens: Estimate
    seconds: Estimate  # of its pool, the start of its engines included
    gpu_hours: Estimate
    cost: Estimate | None  # where a price was given
    in_flight: int  # requests that the probe had at its engine at most, of ``max_num_seqs``
    max_num_seqs: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a plan will take."""

    probed: int
    prompts: int
    seconds: Estimate
    gpu_hours: Estimate
    cost: Estimate | None
    variants: tuple[Predicted, ...]


def draw(settings: Prompts, number: int, seed: int) -> tuple[list[Any], int]:
    """So many prompts of the sources, each equally likely (reservoir sampling), and how many there are."""
    chosen: list[Any] = []
    count = 0
    generator = random.Random(seed)
    for _, content in read(settings):
        count += 1
        if len(chosen) < number:
            chosen.append(content)
        elif (place := generator.randrange(count)) < number:
            chosen[place] = content
    return chosen, count


@contextmanager
def sampled(order: Order, number: int) -> Iterator[tuple[Order, int]]:
    """The same order for ``number`` of its prompts, and how many prompts there are in all.

    Its run directory lies beside that of the recipe, where every node finds it, and is removed unless an error leaves
    logs to look at.
    """
    folder = Place.of(f"{Place.of(order.recipe.run)}.probe")
    folder.remove()
    prompts, count = draw(order.recipe.prompts, number, order.recipe.seed)
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as source:
        source.writelines(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        source.flush()
        own = order.recipe.prompts.model_copy(update={"source": source.name, "column": "prompt", "limit": None})
        # All that are drawn are measured.
        own = own.model_copy(update={"near_duplicates": None, "decontaminate": []})
        yield replace(order, recipe=order.recipe.model_copy(update={"run": str(folder), "prompts": own})), count
    folder.remove()


def probe(run: Run, plan: Plan, count: int, price: float | None, progress: Progress) -> Prediction:
    """Generate for the prompts of ``run``, with one replica a variant, and predict what ``plan`` takes for ``count``.

    ``price`` is that of a GPU-hour.
    """
    recorder = Recorder(progress)
    stages = tuple(replace(stage, replicas=1, elastic=None) for stage in plan.stages)
    started = time.monotonic()
    generate(run, replace(plan, stages=stages), recorder.step, Limits(run.order.recipe.max_failure_rate))
    return _predict(run, plan, recorder, time.monotonic() - started, count, price)


class Look(NamedTuple):
    """What was seen of a variant's one replica at some time."""

    at: float
    done: int  # completions, failed ones too
    queue: int  # requests at the engine


class Recorder:
    """Keeps what is shown of the steps of a plan."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.steps: list[float] = []  # seconds of each
        self.looks: dict[str, list[Look]] = {}  # by variant, once a second

    @contextmanager
    def step(self, title: str, total: float | None, unit: str) -> Iterator[Meter]:
        started = time.monotonic()
        with self._progress(title, total, unit) as meter:
            yield _Recorded(meter, self.looks)
        if unit == "completions":
            self.steps.append(time.monotonic() - started)


class _Recorded(Meter):
    def __init__(self, shown: Meter, looks: dict[str, list[Look]]) -> None:
        self.pace = shown.pace
        self._shown = shown
        self._looks = looks

    def update(self, done: float, detail: str = "", figures: Mapping[str, Figures] | None = None) -> None:
        self._shown.update(done, detail, figures)
        for name, figure in (figures or {}).items():
            look = Look(time.monotonic(), figure.completions + figure.failed, figure.queue)
            self._looks.setdefault(name, []).append(look)

    def say(self, text: str) -> None:
        self._shown.say(text)


@dataclass(frozen=True, slots=True)
class Serving:
    """How one replica worked, from its first request to its last completion."""

    seconds: float
    completions: float
    tail: float  # seconds, from when it had half of its most requests left
    in_tail: float  # completions' worth of work done in the tail
    in_flight: int  # requests at the engine at most
    error: float  # standard error of the rate at full load, relative to it

    def time_for(self, completions: float) -> float:
        """Seconds of serving for another number of completions: the tail once, all else at the full rate."""
        full = self.completions - self.in_tail
        if self.seconds <= self.tail or full <= 0 or completions <= self.in_tail:
            return self.seconds * completions / self.completions
        return (completions - self.in_tail) * (self.seconds - self.tail) / full + self.tail


def serving(seconds: float, looks: Sequence[Look]) -> Serving:
    """How a replica served for so many seconds, by what was seen of it once a second."""
    done = looks[-1].done
    active = [look for look in looks if look.queue or 0 < look.done < done]
    most = max((look.queue for look in active), default=0)
    busy = [look for look in active if look.queue >= most / 2]
    if not busy or seconds <= 0:
        return Serving(seconds, done, seconds, done, most, math.inf)
    ended = next(look.at for look in looks if look.done == done)
    last = busy[-1]
    tail = min(max(ended - last.at, 0.0), seconds)
    full = max(i for i, look in enumerate(busy) if look.queue >= 0.9 * most)
    rates = _rates(busy[: full + 1])
    error = statistics.stdev(rates) / math.sqrt(len(rates)) / statistics.mean(rates) if len(rates) > 1 else math.inf
    # Those in flight are half done on average.
    return Serving(seconds, done, tail, done - last.done - last.queue / 2, most, error)


def _rates(looks: Sequence[Look]) -> list[float]:
    """Completions a second in equal parts of some time, the half of those in flight counted as done."""
    marks = [looks[round(i * (len(looks) - 1) / SEGMENTS)] for i in range(SEGMENTS + 1)]
    parts = [(b.done + b.queue / 2 - a.done - a.queue / 2, b.at - a.at) for a, b in itertools.pairwise(marks)]
    rates = [number / seconds for number, seconds in parts if seconds > 0]
    return rates if sum(rates) > 0 else []


def _predict(run: Run, plan: Plan, recorder: Recorder, seconds: float, count: int, price: float | None) -> Prediction:
    manifest = run.manifest
    staged, effort = manifest["prompts"], manifest["effort"][-1]
    probed: int = staged["ready"]
    prompts = round(count * probed / staged["read"])
    per_prompt = _tokens_per_prompt(run)
    owing = [stage for stage in plan.stages if stage.generations]
    served = {name: float(figures["seconds"]) for name, figures in effort["by_variant"].items()}
    servings = {stage.variant: serving(served[stage.variant], recorder.looks[stage.variant]) for stage in owing}
    work: dict[str, Estimate] = {}  # variant -> seconds of serving over all prompts
    for stage in owing:
        mine = servings[stage.variant]
        expected = mine.time_for(mine.completions * prompts / probed / stage.replicas)
        # Two independent errors: of the tokens that a prompt takes, and of the rate.
        spread = per_prompt[stage.variant]["tokens"]
        tokens = (spread.high - spread.low) / 2 / spread.value if spread.value else 0.0
        error = min(1.0, math.hypot(tokens, 1.96 * mine.error))
        work[stage.variant] = Estimate(expected, expected * (1 - error), expected * (1 + error))
    # What a step takes beside serving: starting its engines first of all.
    steps = [[stage for stage in plan.stages[first : last + 1] if stage.generations] for first, last in plan.steps]
    steps = [step for step in steps if step]
    total = _exactly(max(0.0, seconds - sum(recorder.steps)))
    pool_seconds: dict[str, Estimate] = {}
    for step, took in zip(steps, recorder.steps, strict=True):
        start = _exactly(max(0.0, took - max(served[stage.variant] for stage in step)))
        slowest = max((work[stage.variant] for stage in step), key=lambda estimate: estimate.value)
        total = total.plus(start).plus(slowest)
        for stage in step:  # a pool of a step holds its resources to the end of the step
            pool_seconds[stage.variant] = start.plus(slowest)
    variants = tuple(_of(run, stage, servings, per_prompt, pool_seconds, prompts, probed, price) for stage in owing)
    gpu_hours = NOTHING
    for variant in variants:
        gpu_hours = gpu_hours.plus(variant.gpu_hours)
    cost = gpu_hours.times(price) if price is not None else None
    return Prediction(probed, prompts, total, gpu_hours, cost, variants)


def _of(
    run: Run,
    stage: Stage,
    servings: dict[str, Serving],
    per_prompt: dict[str, dict[str, Estimate]],
    pool_seconds: dict[str, Estimate],
    prompts: int,
    probed: int,
    price: float | None,
) -> Predicted:
    mine = servings[stage.variant]
    gpu_hours = pool_seconds[stage.variant].times(stage.replicas * stage.gpus / 3600)
    return Predicted(
        variant=stage.variant,
        replicas=stage.replicas,
        completions=round(mine.completions * prompts / probed),
        prompt_tokens=per_prompt[stage.variant]["prompt_tokens"].times(prompts),
        new_tokens=per_prompt[stage.variant]["tokens"].times(prompts),
        seconds=pool_seconds[stage.variant],
        gpu_hours=gpu_hours,
        cost=gpu_hours.times(price) if price is not None else None,
        in_flight=mine.in_flight,
        max_num_seqs=run.order.recipe.variants[stage.variant].max_num_seqs,
    )


def _exactly(value: float) -> Estimate:
    return Estimate(value, value, value)


def _tokens_per_prompt(run: Run) -> dict[str, dict[str, Estimate]]:
    """Prompt tokens and new tokens of one prompt by variant, with intervals by resampling prompts (bootstrap)."""
    sums: dict[str, dict[str, list[np.ndarray]]] = {}
    for place in shards(run.current("generations", "generate")):
        with parquet(place) as file:
            column = file.read(columns=["completions"]).column("completions").combine_chunks()
        flat, row = column.flatten(), pc.list_parent_indices(column).to_numpy()
        variants = flat.field("variant").to_numpy(zero_copy_only=False)
        for name in set(variants):
            for kind in ("prompt_tokens", "tokens"):
                tokens = pc.fill_null(flat.field(kind), 0).to_numpy(zero_copy_only=False)
                mine = np.bincount(row, np.where(variants == name, tokens, 0), minlength=len(column))
                sums.setdefault(name, {}).setdefault(kind, []).append(mine)
    return {name: {kind: mean(np.concatenate(p)) for kind, p in kinds.items()} for name, kinds in sums.items()}


def mean(values: np.ndarray) -> Estimate:
    """The mean of (n,) values with its bootstrap interval."""
    generator = np.random.default_rng(0)
    means = values[generator.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(values.mean()), float(low), float(high))
