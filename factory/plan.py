"""The plan: who generates what, in which order and with which resources; computed before anything starts.

It needs no GPU, no model and no Ray, and it is the only place that decides about resources. What cannot fit is an
``InputError`` with the numbers, never a job that waits for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from factory.cookbook import Order
from factory.errors import InputError
from factory.recipe import Recipe, Variant
from strategies.contrast import Contrast, Generation, Message

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
    def cpus(self) -> float:
        """Logical CPUs that are held at once while generating."""
        return self._held([stage.replicas * stage.cpus for stage in self.stages])

    @property
    def gpus(self) -> float:
        """GPUs that are held at once while generating."""
        return self._held([stage.replicas * stage.gpus for stage in self.stages])

    def _held(self, per_stage: list[float]) -> float:
        return sum(per_stage) if self.schedule == "streaming" else max(per_stage)


def make_plan(order: Order, nodes: Sequence[Node], *, num_prompts: int | None = None) -> Plan:
    """The plan for a machine or cluster, over a thousand made-up prompts where a strategy draws its variant by prompt.

    A plan is also made where it does not fit; ``require_fit`` says so.
    """
    drawing = any(len(strategy.variants) > 2 for strategy in order.strategies)
    prompts = [(Message("user", str(i)),) for i in range(1000 if drawing else 1)]
    contrasts = [[strategy.contrast(prompt) for strategy in order.strategies] for prompt in prompts]
    owed = [unique(row) for row in contrasts]
    distinct = sum(map(len, owed)) / len(owed)
    asked = sum(len(unique([contrast])) for row in contrasts for contrast in row) / len(owed)
    passes = stage_order(generation for row in owed for generation in row.values())
    schedule, stages = _schedule(order.recipe, passes, owed, nodes)
    train = order.recipe.train
    return Plan(
        schedule=schedule,
        stages=stages,
        generations_per_prompt=distinct,
        saved_by_sharing=asked - distinct,
        num_prompts=num_prompts or order.recipe.prompts.limit,
        train_workers=train.workers if train else 0,
        train_cpus=train.cpus_per_worker if train else 0,
        train_gpus=train.gpus_per_worker if train else 0,
    )


def unique(contrasts: Iterable[Contrast]) -> dict[str, Generation]:
    """The distinct generations of some contrasts by id, each after those whose answers it needs."""
    sides = [side for contrast in contrasts for side in (contrast.chosen, contrast.rejected)]
    return {generation.id: generation for side in sides for generation in side.walk()}


def stage_order(generations: Iterable[Generation]) -> list[str]:
    """Variants in an order in which every generation finds the answers that it needs.

    A variant stands twice where two variants wait for each other's answers (A revises B, which revises A).
    """
    pending = {generation.id: generation for generation in generations}
    made: set[str] = set()
    order: list[str] = []
    while pending:
        variants = list(dict.fromkeys(generation.variant for generation in pending.values()))
        progress = {variant: _resolvable(variant, pending, made) for variant in variants}
        complete = [v for v in variants if len(progress[v]) == sum(g.variant == v for g in pending.values())]
        best = complete[0] if complete else max(variants, key=lambda variant: len(progress[variant]))
        assert progress[best], "generations depend on each other in a circle"
        order.append(best)
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
    recipe: Recipe, passes: list[str], owed: list[dict[str, Generation]], nodes: Sequence[Node]
) -> tuple[Literal["streaming", "phased"], tuple[Stage, ...]]:
    counts: Counter[str] = Counter(g.variant for row in owed for g in row.values())
    tokens: Counter[str] = Counter()
    for generation in (g for row in owed for g in row.values()):
        tokens[generation.variant] += generation.sampling.max_tokens or recipe.sampling.max_tokens

    def stages(sharing: int) -> tuple[Stage, ...]:
        """The pools where ``sharing`` replicas share the CPUs of the machine."""
        out = []
        for i, name in enumerate(passes):
            variant = recipe.variants[name]
            first = passes.index(name) == i  # a second pass of a variant owes only what the first could not make
            out.append(
                Stage(
                    variant=name,
                    replicas=variant.replicas,
                    cpus=_cpus(variant, nodes, sharing or variant.replicas),
                    gpus=variant.gpus,
                    generations=counts[name] / len(owed) if first else 0,
                    max_new_tokens=tokens[name] / len(owed) if first else 0,
                )
            )
        return tuple(out)

    phased = stages(sharing=0)
    together = stages(sharing=sum(recipe.variants[name].replicas for name in passes))
    if recipe.schedule == "phased" or len(passes) == 1:
        return "phased", phased
    if recipe.schedule == "streaming" or not misfit("", _needs(together), nodes):
        return "streaming", together
    return "phased", phased


def _cpus(variant: Variant, nodes: Sequence[Node], sharing: int) -> int:
    if variant.cpus is not None:
        return variant.cpus
    if variant.gpus or variant.engine == "scripted":
        return 1
    # A replica lives on one node: the largest share with which all find room, also beside a head node without CPUs.
    shares = range(int(max(node.cpus for node in nodes)), 0, -1)
    return next((share for share in shares if sum(node.cpus // share for node in nodes) >= sharing), 1)


def _needs(stages: Iterable[Stage]) -> list[tuple[float, float]]:
    return [(stage.cpus, stage.gpus) for stage in stages for _ in range(stage.replicas)]


def misfit(what: str, needs: Sequence[tuple[float, float]], nodes: Sequence[Node]) -> str | None:
    """Why these (cpus, gpus) replicas cannot be placed on the nodes, with the numbers, or None where they can."""
    free = [_Free(node.cpus, [1.0] * int(node.gpus)) for node in nodes]
    for cpus, gpus in sorted(needs, key=lambda need: (need[1], need[0]), reverse=True):
        # Tightest node first leaves room for the larger replicas.
        fitting = [node for node in free if node.fits(cpus, gpus)]
        if not fitting:
            asked = Counter(needs)
            wish = " + ".join(f"{n} x ({_n(c)} CPU{f', {_n(g)} GPU' if g else ''})" for (c, g), n in asked.items())
            have = " + ".join(f"({_n(n.cpus)} CPU{f', {_n(n.gpus)} GPU' if n.gpus else ', no GPU'})" for n in nodes)
            return f"{what} needs {wish}; there is {have}"
        min(fitting, key=lambda node: (sum(node.gpus), node.cpus)).take(cpus, gpus)
    return None


@dataclass(slots=True)
class _Free:
    """What a node has left; its GPUs one by one, since a fraction lies on one GPU."""

    cpus: float
    gpus: list[float]

    def fits(self, cpus: float, gpus: float) -> bool:
        return self.cpus >= cpus and (
            any(_room(left, gpus) for left in self.gpus) if 0 < gpus < 1 else self.gpus.count(1.0) >= gpus
        )

    def take(self, cpus: float, gpus: float) -> None:
        self.cpus -= cpus
        if 0 < gpus < 1:
            fullest = min((i for i, left in enumerate(self.gpus) if _room(left, gpus)), key=lambda i: self.gpus[i])
            self.gpus[fullest] -= gpus
        for _ in range(int(gpus)):
            self.gpus.remove(1.0)


def _room(left: float, gpus: float) -> bool:
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
