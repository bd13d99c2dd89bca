"""The plan: who generates what, in which order and with which resources; computed before anything starts.

It needs no GPU, no model and no Ray, and it is the only place that decides about resources. What cannot fit is an
``InputError`` with the numbers, never a job that waits for ever.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from factory.cookbook import Order
from factory.errors import InputError
from factory.recipe import Recipe, Variant
from strategies.contrast import Contrast, Generation, Message, Strategy
from strategies.label import GIVEN
from strategies.score import Scores

# `auto` streams unless the slowest of the pools then takes so much longer than all of them one after another, each with
# the whole cluster. Within that, streaming is better: engines start together, and nothing is stored in between.
WORTH_WAITING = 1.25
SAMPLE = (Message("user", "A prompt that stands for all."),)


@dataclass(frozen=True, slots=True)
class Node:
    """Logical resources of one machine."""

    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Stage:
    """One pool: the replicas of one variant, and how many completions they owe to one prompt."""

    variant: str
    replicas: int
    elastic: tuple[int, int] | None  # fewest and most replicas of a pool that follows its load
    cpus: float
    gpus: float
    generations: float
    max_new_tokens: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do."""

    schedule: Literal["streaming", "phased"]
    stages: tuple[Stage, ...]
    generations_per_prompt: float
    saved_by_sharing: float
    num_prompts: int | None
    train_workers: int
    train_cpus: int
    train_gpus: int

    def as_json(self) -> dict[str, Any]:
        """For programs; ``requests`` are per variant over all prompts, or null where their number is not known."""
        owed: dict[str, float] = {}
        for stage in self.stages:
            owed[stage.variant] = owed.get(stage.variant, 0.0) + stage.generations
        n = self.num_prompts
        return {
            "schedule": self.schedule,
            "generations_per_prompt": _whole(self.generations_per_prompt),
            "saved_by_sharing_per_prompt": _whole(self.saved_by_sharing),
            "prompts": n,
            "requests_per_prompt": {variant: _whole(count) for variant, count in owed.items()},
            "requests": {variant: None if n is None else round(count * n) for variant, count in owed.items()},
            "max_new_tokens": None if n is None else round(sum(s.max_new_tokens for s in self.stages) * n),
            "stages": [asdict(stage) for stage in self.stages],
            "resources": {"cpus": self.cpus, "gpus": self.gpus},
            "train": {"workers": self.train_workers, "cpus": self.train_cpus, "gpus": self.train_gpus},
        }

    @property
    def steps(self) -> list[tuple[int, int]]:
        """Which stages run at the same time, as (first, last)."""
        last = len(self.stages) - 1
        if self.schedule == "streaming":
            return [(0, last)]
        return [(i, i) for i in range(last + 1)]

    @property
    def cpus(self) -> float:
        """Logical CPUs that are held at once while generating."""
        return self._held([stage.replicas * stage.cpus for stage in self.stages])

    @property
    def gpus(self) -> float:
        """GPUs that are held at once while generating."""
        return self._held([stage.replicas * stage.gpus for stage in self.stages])

    def _held(self, per_stage: list[float]) -> float:
        return sum(per_stage) if self.schedule == "streaming" else max(per_stage, default=0)


def make_plan(
    order: Order, nodes: Sequence[Node], *, num_prompts: int | None = None, made: Order | None = None
) -> Plan:
    """The plan for a machine or cluster, over a thousand made-up prompts where a strategy draws its variant by prompt.

    What an order before has ``made`` is not owed again. A plan is also made where it does not fit; ``require_fit`` says
    so.
    """
    num_prompts = num_prompts or order.recipe.prompts.limit
    drawing = order.scores is not None or any(len(strategy.variants) > 2 for strategy in order.strategies)
    prompts = [(Message("user", str(i)),) for i in range(1000 if drawing else 1)]
    contrasts = [[strategy.contrast(prompt) for strategy in order.strategies] for prompt in prompts]
    owed = [{g.id: g for g in owing(prompt, order.strategies, order.scores)} for prompt in prompts]
    if made is not None:
        there = [{g.id for g in owing(prompt, made.strategies, made.scores)} for prompt in prompts]
        owed = [{i: g for i, g in row.items() if i not in old} for row, old in zip(owed, there, strict=True)]
    distinct = sum(map(len, owed)) / len(owed)
    saved = sum(sum(len(unique([contrast])) for contrast in row) - len(unique(row)) for row in contrasts) / len(owed)
    passes = passes_of(generation for row in owed for generation in row.values())
    schedule, stages = _schedule(order.recipe, passes, owed, nodes, num_prompts)
    train = order.recipe.train
    return Plan(
        schedule=schedule,
        stages=stages,
        generations_per_prompt=distinct,
        saved_by_sharing=saved,
        num_prompts=num_prompts,
        train_workers=train.workers if train else 0,
        train_cpus=train.cpus_per_worker if train else 0,
        train_gpus=train.gpus_per_worker if train else 0,
    )


def unique(contrasts: Iterable[Contrast]) -> dict[str, Generation]:
    """The distinct generations of some contrasts by id, each after those whose answers it needs."""
    return {generation.id: generation for generation in walk(contrasts)}


def walk(contrasts: Iterable[Contrast]) -> Iterator[Generation]:
    """The generations of some contrasts, each after those whose answers it needs; shared ones come several times."""
    for contrast in contrasts:
        yield from contrast.walk()


def owing(prompt: tuple[Message, ...], strategies: Iterable[Strategy], scores: Scores | None) -> Iterator[Generation]:
    """All that is to be made for a prompt: the completions of its contrasts and what is measured about them, each after
    those whose answers it needs; shared ones come several times. Labelled answers came with the prompt."""
    for strategy in strategies:
        contrast = strategy.contrast(prompt)
        found = contrast.walk()
        if scores is not None:
            found = itertools.chain(found, scores.evidence(prompt, contrast).walk())
        for generation in found:
            if generation.variant != GIVEN:
                yield generation


def passes_of(generations: Iterable[Generation]) -> list[tuple[str, frozenset[str]]]:
    """Variants in an order in which every generation finds the answers that it needs, with the ids of what each makes.

    A variant stands twice where two variants wait for each other's answers (A revises B, which revises A).
    """
    pending = {generation.id: generation for generation in generations}
    # Replies to what is not among them were made before.
    made = {reply.id for generation in pending.values() for reply in generation.replies} - pending.keys()
    order: list[tuple[str, frozenset[str]]] = []
    while pending:
        variants = list(dict.fromkeys(generation.variant for generation in pending.values()))
        progress = {variant: _resolvable(variant, pending, made) for variant in variants}
        complete = [v for v in variants if len(progress[v]) == sum(g.variant == v for g in pending.values())]
        best = complete[0] if complete else max(variants, key=lambda variant: len(progress[variant]))
        assert progress[best], "generations depend on each other in a circle"
        order.append((best, frozenset(progress[best])))
        made |= progress[best]
        pending = {identity: g for identity, g in pending.items() if identity not in made}
    return order


def _resolvable(variant: str, pending: dict[str, Generation], made: set[str]) -> set[str]:
    """Ids of the pending generations that this variant can make now, those that build on its own included."""
    found: set[str] = set()
    for identity, generation in pending.items():  # `unique` lists dependencies first
        if generation.variant == variant and all(r.id in made or r.id in found for r in generation.replies):
            found.add(identity)
    return found


def _schedule(
    recipe: Recipe,
    passes: list[tuple[str, frozenset[str]]],
    owed: list[dict[str, Generation]],
    nodes: Sequence[Node],
    num_prompts: int | None,
) -> tuple[Literal["streaming", "phased"], tuple[Stage, ...]]:
    where = {identity: i for i, (_, made) in enumerate(passes) for identity in made}
    counts: Counter[int] = Counter()
    tokens: Counter[int] = Counter()
    for identity, generation in (item for row in owed for item in row.items()):
        counts[where[identity]] += 1
        if generation.measure is None:
            tokens[where[identity]] += generation.sampling.max_tokens or recipe.sampling.max_tokens

    def stage(i: int, together: bool) -> Stage:
        """A pool at its smallest, alone on the machine or sharing its CPUs with all others."""
        name = passes[i][0]
        variant = recipe.variants[name]
        replicas = _fewest(variant)
        if variant.replicas is None and not together and takes_all_cpus(variant):
            replicas = sum(2 * node.cpus > max(n.cpus for n in nodes) for node in nodes)  # one on each node
        sharing = sum(_fewest(recipe.variants[other]) for other, _ in passes) if together else replicas
        return Stage(
            variant=name,
            replicas=replicas,
            elastic=variant.replicas if isinstance(variant.replicas, tuple) else None,
            cpus=_cpus(variant, nodes, sharing),
            gpus=variant.gpus,
            generations=counts[i] / len(owed),
            max_new_tokens=tokens[i] / len(owed),
        )

    phased = tuple(_grown((stage(i, together=False),), recipe, nodes, num_prompts)[0] for i in range(len(passes)))
    streaming = tuple(stage(i, together=True) for i in range(len(passes)))
    if recipe.schedule == "phased" or (recipe.schedule == "auto" and misfit("", _needs(streaming), nodes)):
        return "phased", phased
    streaming = _grown(streaming, recipe, nodes, num_prompts)
    if recipe.schedule == "auto" and len(passes) > 1:
        times = [[_time(stage, recipe) for stage in stages] for stages in (streaming, phased)]
        if max(times[0]) > WORTH_WAITING * sum(times[1]):
            return "phased", phased
    return ("streaming", streaming) if recipe.schedule == "streaming" or len(passes) > 1 else ("phased", phased)


def _time(stage: Stage, recipe: Recipe) -> float:
    """A pool's time for a prompt in some unit. A model on more GPUs is larger, hence they stand for the cost of a
    token; an engine on CPUs is as fast as it has CPUs."""
    speed = stage.cpus if takes_all_cpus(recipe.variants[stage.variant]) else 1
    return stage.max_new_tokens * (stage.gpus or 1) / (stage.replicas * speed)


def _fewest(variant: Variant) -> int:
    return variant.replicas[0] if isinstance(variant.replicas, tuple) else variant.replicas or 1


def takes_all_cpus(variant: Variant) -> bool:
    """Whether its engines share all CPUs that there are."""
    return variant.engine in ("vllm", "reward") and not variant.gpus and variant.cpus is None


def _grown(
    stages: tuple[Stage, ...], recipe: Recipe, nodes: Sequence[Node], num_prompts: int | None
) -> tuple[Stage, ...]:
    """Replicas added where there is room, each time to the pool that has most left to do for each GPU or CPU of its
    own, so that no pool waits for another. Larger models have more of these, hence they stand for the cost of a token.
    """
    free = _room(nodes)
    if not all(_place(free, stage.cpus, stage.gpus) for stage in stages for _ in range(stage.replicas)):
        return stages
    replicas = [stage.replicas for stage in stages]
    most = [_most(stage, recipe, num_prompts) for stage in stages]
    growing = {i for i in range(len(stages)) if replicas[i] < most[i]}
    while growing:
        i = max(growing, key=lambda i: stages[i].max_new_tokens * (stages[i].gpus or 1) / replicas[i])
        if _place(free, stages[i].cpus, stages[i].gpus):
            replicas[i] += 1
        if replicas[i] == most[i] or not _fits(free, stages[i].cpus, stages[i].gpus):
            growing.discard(i)
    return tuple(replace(stage, replicas=number) for stage, number in zip(stages, replicas, strict=True))


def _most(stage: Stage, recipe: Recipe, num_prompts: int | None) -> int:
    """The replicas that a pool may grow to: never more than have a full batch each."""
    variant = recipe.variants[stage.variant]
    if isinstance(variant.replicas, int) or variant.engine not in ("vllm", "reward") or takes_all_cpus(variant):
        return stage.replicas
    most = variant.replicas[1] if variant.replicas else sys.maxsize
    if num_prompts is not None:
        most = min(most, math.ceil(num_prompts * max(1.0, stage.generations) / variant.max_num_seqs))
    return most


def refit(stages: Sequence[Stage], nodes: Sequence[Node]) -> tuple[Stage, ...] | None:
    """The pools with as many replicas as the nodes that are left have room for; None where one each is too many."""
    stages = tuple(stages)
    while misfit("", _needs(stages), nodes):
        i = max(range(len(stages)), key=lambda i: stages[i].replicas)
        if stages[i].replicas == 1:
            return None
        elastic = stages[i].elastic
        fewer = replace(stages[i], replicas=stages[i].replicas - 1, elastic=(1, elastic[1]) if elastic else None)
        stages = (*stages[:i], fewer, *stages[i + 1 :])
    return stages


def _cpus(variant: Variant, nodes: Sequence[Node], sharing: int) -> int:
    if variant.cpus is not None:
        return variant.cpus
    if not takes_all_cpus(variant):
        return 1
    # A replica lives on one node: the largest share with which all find room, also beside a head node without CPUs.
    shares = range(int(max(node.cpus for node in nodes)), 0, -1)
    return next((share for share in shares if sum(node.cpus // share for node in nodes) >= sharing), 1)


def _needs(stages: Iterable[Stage]) -> list[tuple[float, float]]:
    return [(stage.cpus, stage.gpus) for stage in stages for _ in range(stage.replicas)]


def misfit(what: str, needs: Sequence[tuple[float, float]], nodes: Sequence[Node]) -> str | None:
    """Why these (cpus, gpus) replicas cannot be placed on the nodes, with the numbers, or None where they can."""
    free = _room(nodes)
    for cpus, gpus in sorted(needs, key=lambda need: (need[1], need[0]), reverse=True):
        if not _place(free, cpus, gpus):
            asked = Counter(needs)
            wish = " + ".join(f"{n} x ({_n(c)} CPU{f', {_n(g)} GPU' if g else ''})" for (c, g), n in asked.items())
            have = " + ".join(f"({_n(n.cpus)} CPU{f', {_n(n.gpus)} GPU' if n.gpus else ', no GPU'})" for n in nodes)
            return f"{what} needs {wish}; there is {have}"
    return None


def _room(nodes: Sequence[Node]) -> list[_Free]:
    return [_Free(node.cpus, [1.0] * int(node.gpus)) for node in nodes]


def _fits(free: Sequence[_Free], cpus: float, gpus: float) -> bool:
    return any(node.fits(cpus, gpus) for node in free)


def _place(free: Sequence[_Free], cpus: float, gpus: float) -> bool:
    """Take the resources of one replica where they fit; the tightest node first leaves room for larger replicas."""
    fitting = [node for node in free if node.fits(cpus, gpus)]
    if fitting:
        min(fitting, key=lambda node: (sum(node.gpus), node.cpus)).take(cpus, gpus)
    return bool(fitting)


@dataclass(slots=True)
class _Free:
    """What a node has left; its GPUs one by one, since a fraction lies on one GPU."""

    cpus: float
    gpus: list[float]

    def fits(self, cpus: float, gpus: float) -> bool:
        return self.cpus >= cpus and (
            any(_enough(left, gpus) for left in self.gpus) if 0 < gpus < 1 else self.gpus.count(1.0) >= gpus
        )

    def take(self, cpus: float, gpus: float) -> None:
        self.cpus -= cpus
        if 0 < gpus < 1:
            fullest = min((i for i, left in enumerate(self.gpus) if _enough(left, gpus)), key=lambda i: self.gpus[i])
            self.gpus[fullest] -= gpus
        for _ in range(int(gpus)):
            self.gpus.remove(1.0)


def _enough(left: float, gpus: float) -> bool:
    return left >= gpus - 1e-9  # 1 - 0.8 is a little less than 0.2


def misfits(plan: Plan, nodes: Sequence[Node]) -> list[str]:
    """Everything of a plan that cannot be placed on the nodes."""
    found: list[str | None] = []
    if plan.schedule == "streaming":
        found.append(misfit("schedule 'streaming'", _needs(plan.stages), nodes))
    else:
        found += [misfit(f"variant '{stage.variant}'", _needs([stage]), nodes) for stage in plan.stages]
    if plan.train_workers:
        found.append(misfit("train", [(plan.train_cpus, plan.train_gpus)] * plan.train_workers, nodes))
    return [text for text in found if text]


def require_fit(plan: Plan, nodes: Sequence[Node], *, generating: bool = True, training: bool = True) -> None:
    """Refuse a plan whose ``generating`` or ``training`` part cannot be placed.

    Raises:
        InputError: with what is needed and what there is.
    """
    for text in misfits(plan, nodes):
        if training if text.startswith("train ") else generating:
            raise InputError(
                f"the plan does not fit: {text}; lower replicas, cpus or gpus of the variant (train.workers for train)"
                + (", or set schedule=phased" if plan.schedule == "streaming" else "")
            )


def _whole(value: float) -> float:
    return int(value) if value == int(value) else round(value, 3)


def _n(value: float) -> str:
    return f"{value:g}"
