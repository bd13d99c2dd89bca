"""The plan: what is owed per prompt, in which order, on what, and what does not fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

from factory import cookbook
from factory.cookbook import Order, order
from factory.errors import InputError
from factory.plan import Node, Plan, make_plan, misfit, misfits, passes_of, refit, require_fit, unique
from strategies.contrast import Contrast, Generation, Level, Message, Reply, Strategy

ASK = (Message("user", "Name a river."),)
CPU1, CPU2, CPU4 = ([Node(cpus=n, gpus=0)] for n in (1, 2, 4))
GPU8 = Node(cpus=96, gpus=8)
FORMED = ("elicitive", "refine")  # the strategies with a thought


def made(*overrides: str) -> Order:
    """Six strategies over three CPU variants, changed as by ``--set``."""
    data: dict[str, Any] = {
        "run": "runs/x",
        "prompts": {"source": "prompts.jsonl"},
        "sampling": {"max_tokens": 100},
        "variants": {"strong": {"model": "a"}, "second": {"model": "b"}, "small": {"model": "c"}},
        "strategies": {
            "prefix": {"variant": "strong"},
            "demon": {"variant": "strong"},
            "elicitive": {"variant": "strong"},
            "nparam": {"chosen": "strong", "rejected": "small"},
            "leaderboard": {"ladder": ["strong", "second"]},
            "refine": {"variant": "strong"},
        },
    }
    for override in overrides:
        cookbook._set(data, override)
    return cookbook.check(data, "r")


def shape(plan: Plan) -> list[tuple[str, int, float, float]]:
    return [(stage.variant, stage.replicas, stage.cpus, stage.gpus) for stage in plan.stages]


@pytest.mark.parametrize("recipe", ["alignment", "leaderboard"])
def test_plan_paper_recipe_owes_ten_completions_and_saves_two(recipe: str) -> None:
    facts = make_plan(order(recipe), [GPU8]).as_json()
    assert facts["generations_per_prompt"] == 10
    assert facts["saved_by_sharing_per_prompt"] == 2  # 6 strategies x 2 sides = 12
    assert facts["requests_per_prompt"] == {"strong": 8, "small": 1, "second": 1}
    assert facts["prompts"] is None and facts["max_new_tokens"] is None
    assert facts["requests"] == {"strong": None, "small": None, "second": None}


@pytest.mark.parametrize("preset", ["alignment", "leaderboard"])
def test_plan_forced_form_owes_three_thoughts_more(preset: str) -> None:
    forced = [f"strategies.{name}={{variant: strong, format: forced, thought_tokens: 32}}" for name in FORMED]
    facts = make_plan(made(f"preset={preset}", *forced), CPU4, num_prompts=20).as_json()
    assert facts["generations_per_prompt"] == 13
    assert facts["saved_by_sharing_per_prompt"] == 2
    assert facts["requests_per_prompt"] == {"strong": 11, "small": 1, "second": 1}
    assert facts["requests"] == {"strong": 220, "small": 20, "second": 20}
    # strong: 8 answers x 100 + 3 thoughts x 32 = 896; small and second: 100 each.
    assert {stage["variant"]: stage["max_new_tokens"] for stage in facts["stages"]} == {
        "strong": 896,
        "small": 100,
        "second": 100,
    }
    assert facts["max_new_tokens"] == (896 + 100 + 100) * 20


def test_plan_without_sharing_owes_twelve_and_saves_nothing() -> None:
    facts = make_plan(made("share=false"), CPU4).as_json()
    assert (facts["generations_per_prompt"], facts["saved_by_sharing_per_prompt"]) == (12, 0)
    assert facts["requests_per_prompt"] == {"strong": 10, "small": 1, "second": 1}


def test_plan_number_of_prompts_is_given_or_the_recipes_limit_or_unknown() -> None:
    assert make_plan(made(), CPU4).num_prompts is None
    assert make_plan(made("prompts.limit=5"), CPU4).num_prompts == 5
    assert make_plan(made("prompts.limit=5"), CPU4, num_prompts=3).num_prompts == 3


def test_plan_ladder_of_four_owes_each_lower_rung_a_third() -> None:
    wanted = made(
        "variants.third.model=d",
        "variants.fourth.model=e",
        "strategies.leaderboard.ladder=[strong, second, third, fourth]",
    )
    facts = make_plan(wanted, CPU4).as_json()
    assert facts["generations_per_prompt"] == 10
    per_prompt = facts["requests_per_prompt"]
    lower = [per_prompt[name] for name in ("second", "third", "fourth")]
    assert sum(lower) == pytest.approx(1, abs=0.002)  # rounded to three digits each
    # A thousand made-up prompts: 1/3 +- sqrt(1/3 x 2/3 / 1000) = 0.015; four of these are 0.06.
    assert all(abs(share - 1 / 3) < 0.06 for share in lower)


# The order of the pools, with strategies whose variants need each other's answers.


@dataclass(frozen=True, slots=True)
class Revise(Strategy):
    """The teacher revises the student's answer."""

    name: ClassVar[str] = "revise"
    level: ClassVar[Level] = "pipeline"

    student: str
    teacher: str

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.teacher, self.student)

    def contrast(self, prompt: tuple[Message, ...]) -> Contrast:
        first = Generation(self.student, prompt)
        revised = Generation(self.teacher, (*prompt, Message("assistant", Reply(first)), Message("user", "Revise.")))
        return Contrast(self.name, chosen=revised, rejected=first)


@dataclass(frozen=True, slots=True)
class PingPong(Strategy):
    """The student answers, the teacher comments, the student answers again."""

    name: ClassVar[str] = "pingpong"
    level: ClassVar[Level] = "pipeline"

    student: str
    teacher: str

    @property
    def variants(self) -> tuple[str, ...]:
        return (self.student, self.teacher)

    def contrast(self, prompt: tuple[Message, ...]) -> Contrast:
        first = Generation(self.student, prompt)
        comment = Generation(self.teacher, (*prompt, Message("assistant", Reply(first)), Message("user", "Comment.")))
        second = Generation(self.student, (*prompt, Message("user", Reply(comment))))
        return Contrast(self.name, chosen=second, rejected=first)


def owing(*strategies: Strategy) -> Order:
    return replace(made(), strategies=strategies)


@pytest.mark.parametrize(("student", "teacher"), [("small", "strong"), ("strong", "small")])
def test_stage_order_answer_comes_before_the_variant_that_replies_to_it(student: str, teacher: str) -> None:
    plan = make_plan(owing(Revise(student, teacher)), CPU4)
    assert [stage.variant for stage in plan.stages] == [student, teacher]
    assert [stage.generations for stage in plan.stages] == [1, 1]


def test_stage_order_does_not_depend_on_the_order_of_the_strategies() -> None:
    chain = [Revise("second", "strong"), Revise("small", "second")]  # small -> second -> strong
    for strategies in (chain, chain[::-1]):
        plan = make_plan(owing(*strategies), CPU4)
        # second owes its bare answer and the revision of small's: one pass makes both once small is done.
        assert [stage.variant for stage in plan.stages] == ["small", "second", "strong"]


def test_stage_order_variants_that_wait_for_each_other_get_a_second_pass() -> None:
    plan = make_plan(owing(PingPong("small", "strong")), CPU4)
    assert [stage.variant for stage in plan.stages] == ["small", "strong", "small"]
    # Each pass counts its own, so that the progress of the second has an end.
    assert [stage.generations for stage in plan.stages] == [1, 1, 1]
    assert plan.as_json()["requests_per_prompt"] == {"small": 2, "strong": 1}
    assert plan.generations_per_prompt == 3


def test_stage_order_two_variants_that_revise_each_other() -> None:
    both = owing(Revise("small", "strong"), Revise("strong", "small"))
    names = [stage.variant for stage in make_plan(both, CPU4).stages]
    assert names in (["small", "strong", "small"], ["strong", "small", "strong"])


def test_stage_order_replay_finds_every_answer_that_is_needed() -> None:
    strategies = [*made().strategies, PingPong("small", "strong"), Revise("second", "small"), Revise("small", "second")]
    generations = unique(strategy.contrast(ASK) for strategy in strategies)
    made_ids: set[str] = set()
    for variant, _ in passes_of(generations.values()):
        for identity, generation in generations.items():
            if generation.variant == variant and all(reply.id in made_ids for reply in generation.replies):
                made_ids.add(identity)
    assert made_ids == set(generations)


def test_stage_order_refine_needs_one_pass_of_its_variant() -> None:
    assert [stage.variant for stage in make_plan(made(), CPU4).stages] == ["strong", "small", "second"]


def test_unique_lists_an_answer_before_what_replies_to_it() -> None:
    contrast = PingPong("small", "strong").contrast(ASK)
    listed = list(unique([contrast]).values())
    for number, generation in enumerate(listed):
        assert all(reply in listed[:number] for reply in generation.replies)
    assert len(listed) == 3


# Schedule and CPUs.


def test_schedule_auto_one_cpu_runs_one_after_another() -> None:
    plan = make_plan(made(), CPU1)
    assert plan.schedule == "phased"
    assert shape(plan) == [("strong", 1, 1, 0), ("small", 1, 1, 0), ("second", 1, 1, 0)]
    assert (plan.cpus, plan.gpus) == (1, 0)
    assert misfits(plan, CPU1) == []


def test_schedule_auto_two_cpus_are_too_few_for_three_pools() -> None:
    plan = make_plan(made(), CPU2)
    assert plan.schedule == "phased"
    assert shape(plan) == [("strong", 1, 2, 0), ("small", 1, 2, 0), ("second", 1, 2, 0)]  # each the whole machine
    assert plan.cpus == 2
    assert misfits(plan, CPU2) == []


def test_schedule_auto_streams_where_the_pools_are_balanced() -> None:
    # 8 completions a prompt on 6 GPUs take 8 / 6; one after another on 8 GPUs (8 + 1 + 1) / 8, hardly less.
    plan = make_plan(made(*GPUS), [GPU8])
    assert (plan.schedule, replicas(plan)) == ("streaming", {"strong": 6, "second": 1, "small": 1})


def test_schedule_auto_does_not_let_two_pools_wait_for_a_third() -> None:
    # On a CPU each: 8 against (8 + 1 + 1) / 4.
    assert make_plan(made(), CPU4).schedule == "phased"
    assert (
        make_plan(
            made("strategies.prefix=null", *(f"strategies.{n}=null" for n in ("demon", "elicitive", "refine"))),
            [Node(9, 0)],
        ).schedule
        == "streaming"
    )


def test_schedule_streaming_four_cpus_are_shared() -> None:
    plan = make_plan(made("schedule=streaming"), CPU4)
    assert shape(plan) == [("strong", 1, 1, 0), ("small", 1, 1, 0), ("second", 1, 1, 0)]  # 4 // 3 = 1 each
    assert plan.cpus == 3
    assert misfits(plan, CPU4) == []


def test_schedule_phased_four_cpus_gives_each_pool_all() -> None:
    plan = make_plan(made("schedule=phased"), CPU4)
    assert (plan.schedule, plan.cpus) == ("phased", 4)
    assert {stage.cpus for stage in plan.stages} == {4}


def test_schedule_phased_replicas_share_the_machine() -> None:
    plan = make_plan(made("schedule=phased", "variants.strong.replicas=2"), CPU4)
    assert shape(plan) == [("strong", 2, 2, 0), ("small", 1, 4, 0), ("second", 1, 4, 0)]
    assert plan.cpus == 4
    assert misfits(plan, CPU4) == []


def test_schedule_streaming_replicas_share_the_machine() -> None:
    # 4 replicas on 9 CPUs: 9 // 4 = 2 each.
    plan = make_plan(made("schedule=streaming", "variants.strong.replicas=2"), [Node(9, 0)])
    assert shape(plan) == [("strong", 2, 2, 0), ("small", 1, 2, 0), ("second", 1, 2, 0)]
    assert plan.cpus == 8


def test_schedule_streaming_that_does_not_fit_is_said_with_the_numbers() -> None:
    plan = make_plan(made("schedule=streaming"), CPU2)
    assert plan.schedule == "streaming"
    assert misfits(plan, CPU2) == ["schedule 'streaming' needs 3 x (1 CPU); there is (2 CPU, no GPU)"]


def test_schedule_cpus_of_the_recipe_are_kept() -> None:
    plan = make_plan(made("variants.strong.cpus=3", "schedule=phased"), CPU2)
    assert plan.stages[0].cpus == 3
    assert misfits(plan, CPU2) == ["variant 'strong' needs 1 x (3 CPU); there is (2 CPU, no GPU)"]


def test_schedule_scripted_engine_takes_one_cpu() -> None:
    scripted = [f"variants.{name}.engine=scripted" for name in ("strong", "second", "small")]
    assert {stage.cpus for stage in make_plan(made(*scripted, "schedule=phased"), CPU4).stages} == {1}


@pytest.mark.parametrize("schedule", ["auto", "phased"])
def test_schedule_default_cpus_fit_on_a_cluster_of_cpu_nodes(schedule: str) -> None:
    """A replica lives on one node: two nodes of 4 CPUs are no node of 8."""
    nodes = [Node(4, 0), Node(4, 0)]
    assert misfits(make_plan(made(f"schedule={schedule}"), nodes), nodes) == []


@pytest.mark.parametrize("nodes", [[Node(0, 0), Node(8, 0)], [Node(2, 0), Node(8, 0)]])
@pytest.mark.parametrize("schedule", ["auto", "phased", "streaming"])
def test_schedule_default_cpus_fit_where_the_head_node_has_few_or_none(schedule: str, nodes: list[Node]) -> None:
    """A head node with 0 CPUs is the usual set-up on Kubernetes. 4 replicas have room on the other: 8 // 4 = 2 each."""
    wanted = made(f"schedule={schedule}", "variants.strong.replicas=2")
    assert misfits(make_plan(wanted, nodes), nodes) == []


# GPUs.


def test_gpus_paper_recipe_runs_phased_on_one_node_of_eight() -> None:
    plan = make_plan(order("leaderboard"), [GPU8])
    assert plan.schedule == "phased"
    assert shape(plan) == [("strong", 4, 1, 2), ("small", 8, 1, 1), ("second", 4, 1, 2)]
    assert (plan.cpus, plan.gpus) == (8, 8)
    assert misfits(plan, [GPU8]) == []


def test_gpus_paper_recipe_fills_three_nodes_of_eight() -> None:
    nodes = [GPU8] * 3
    plan = make_plan(order("leaderboard", ["schedule=streaming"]), nodes)
    assert replicas(plan) == {"strong": 9, "second": 2, "small": 2}
    assert plan.gpus == 24
    assert misfits(plan, nodes) == []
    assert replicas(make_plan(order("leaderboard", ["schedule=phased"]), nodes)) == {
        "strong": 12,
        "second": 12,
        "small": 24,
    }


def test_gpus_paper_recipe_on_two_cpus_misfits_everything() -> None:
    plan = make_plan(order("leaderboard"), CPU2)
    assert misfits(plan, CPU2) == [
        "variant 'strong' needs 1 x (1 CPU, 2 GPU); there is (2 CPU, no GPU)",
        "variant 'small' needs 1 x (1 CPU, 1 GPU); there is (2 CPU, no GPU)",
        "variant 'second' needs 1 x (1 CPU, 2 GPU); there is (2 CPU, no GPU)",
        "train needs 8 x (1 CPU, 1 GPU); there is (2 CPU, no GPU)",
    ]


def test_gpus_node_of_four_is_too_small_by_the_numbers() -> None:
    node = [Node(32, 4)]
    assert misfits(make_plan(order("leaderboard", ["variants.strong.replicas=4"]), node), node)[0] == (
        "variant 'strong' needs 4 x (1 CPU, 2 GPU); there is (32 CPU, 4 GPU)"
    )


@pytest.mark.parametrize(
    ("needs", "nodes", "fits"),
    [
        ([(1, 2)] * 4, [(8, 8)], True),
        ([(1, 2)] * 4, [(8, 4), (8, 4)], True),
        ([(1, 4), (1, 4)], [(8, 4), (8, 4)], True),
        ([(1, 8)], [(8, 4), (8, 4)], False),  # tensor parallel stays within a node
        ([(1, 3), (1, 3), (1, 1), (1, 1)], [(8, 4), (8, 4)], True),
        ([(1, 3), (1, 3), (1, 2)], [(8, 4), (8, 4)], False),  # 8 GPUs asked, 8 there, and still no room
        ([(1, 1), (1, 1), (1, 4), (1, 2)], [(8, 4), (8, 4)], True),  # the large ones are placed first
        ([(3, 0)] * 3, [(5, 0), (5, 0)], False),  # 9 of 10 CPUs, but one of 3 fits on each node
        ([(3, 0)] * 2, [(5, 0), (5, 0)], True),
        ([(1, 1), (8, 0)], [(8, 1), (8, 0)], True),  # what needs no GPU leaves the node with one
        ([(8, 0), (1, 1)], [(8, 0), (8, 1)], True),
        ([(9, 1)], [(8, 1)], False),
        ([], [(1, 0)], True),
        ([(1, 0)], [], False),
        # Fractions share one GPU.
        ([(1, 0.5)] * 2, [(8, 1)], True),
        ([(1, 0.5)] * 3, [(8, 1)], False),
        ([(1, 0.1)] * 10, [(16, 1)], True),
        # 1 - 0.8 is 0.19999999999999996 in floating point, and still room for 0.2.
        ([(1, 0.8), (1, 0.2)], [(8, 1)], True),
        ([(1, 0.4), (1, 0.4), (1, 0.2)], [(8, 1)], True),
        ([(1, 0.6)] * 2, [(8, 2)], True),
        ([(1, 0.6)] * 3, [(8, 2)], False),  # 1.8 of 2, but a replica cannot take 0.4 of one GPU and 0.2 of another
        ([(1, 1), (1, 0.5), (1, 0.5)], [(8, 2)], True),
        ([(1, 2), (1, 0.5)], [(8, 2), (8, 1)], True),
    ],
)
def test_misfit_places_replicas_on_nodes(
    needs: list[tuple[float, float]], nodes: list[tuple[float, float]], fits: bool
) -> None:
    found = misfit("it", needs, [Node(*node) for node in nodes])
    assert (found is None) == fits, found


def test_misfit_text_has_all_needs_and_all_nodes() -> None:
    text = misfit("it", [(1, 2), (1, 2), (4, 0)], [Node(8, 1), Node(2, 0)])
    assert text == "it needs 2 x (1 CPU, 2 GPU) + 1 x (4 CPU); there is (8 CPU, 1 GPU) + (2 CPU, no GPU)"


# Training, and refusing.


def test_train_workers_are_part_of_the_plan() -> None:
    train = "train={variant: small, workers: 4, cpus_per_worker: 2, gpus_per_worker: 1}"
    facts = make_plan(made(train), [Node(16, 4)]).as_json()
    assert facts["train"] == {"workers": 4, "cpus": 2, "gpus": 1}
    assert make_plan(made(), CPU4).as_json()["train"] == {"workers": 0, "cpus": 0, "gpus": 0}


def test_train_workers_that_do_not_fit_are_said_with_the_numbers() -> None:
    plan = make_plan(made("train={variant: small, workers: 2}"), CPU1)
    assert misfits(plan, CPU1) == ["train needs 2 x (1 CPU); there is (1 CPU, no GPU)"]
    assert misfits(make_plan(made("train={variant: small, workers: 2}"), CPU2), CPU2) == []


def test_train_workers_spread_over_nodes() -> None:
    nodes = [Node(1, 0), Node(1, 0)]
    one_cpu = [f"variants.{name}.cpus=1" for name in ("strong", "second", "small")]
    wanted = made("train={variant: small, workers: 2}", "schedule=phased", *one_cpu)
    assert misfits(make_plan(wanted, nodes), nodes) == []


def test_require_fit_plan_that_fits_says_nothing() -> None:
    require_fit(make_plan(made(), CPU2), CPU2)


def test_require_fit_generation_says_numbers_and_way_out() -> None:
    with pytest.raises(InputError) as caught:
        require_fit(make_plan(order("leaderboard"), CPU2), CPU2)
    text = str(caught.value)
    assert text.startswith("the plan does not fit: variant 'strong' needs 1 x (1 CPU, 2 GPU); there is (2 CPU, no GPU)")
    assert "lower replicas, cpus or gpus" in text
    assert "schedule=phased" not in text, "it is phased already"


def test_require_fit_streaming_names_phased_as_a_way_out() -> None:
    with pytest.raises(InputError, match=r"schedule 'streaming' needs 3 x \(1 CPU\).*set schedule=phased"):
        require_fit(make_plan(made("schedule=streaming"), CPU2), CPU2)


def test_require_fit_train_is_refused_only_where_it_will_train() -> None:
    plan = make_plan(made("train={variant: small, workers: 2}"), CPU1)
    require_fit(plan, CPU1, training=False)
    with pytest.raises(InputError, match=r"train needs 2 x \(1 CPU\); there is \(1 CPU, no GPU\).*train\.workers"):
        require_fit(plan, CPU1, training=True)


def test_plan_demo_fits_on_two_cpus() -> None:
    plan = make_plan(order("demo"), CPU2)
    assert misfits(plan, CPU2) == []
    assert plan.schedule == "phased"


GPUS = tuple(f"variants.{name}.gpus=1" for name in ("strong", "second", "small"))


def replicas(plan: Plan) -> dict[str, int]:
    return {stage.variant: stage.replicas for stage in plan.stages}


def test_replicas_phased_gives_each_variant_the_whole_cluster() -> None:
    plan = make_plan(made("schedule=phased", *GPUS, "variants.small.gpus=2"), [GPU8, GPU8])
    assert replicas(plan) == {"strong": 16, "second": 16, "small": 8}


def test_replicas_streaming_are_shared_by_the_tokens_that_each_pool_owes() -> None:
    plan = make_plan(made("schedule=streaming", *GPUS), [GPU8, Node(96, 2)])
    # 8 completions a prompt against 1 and 1, on 10 GPUs.
    assert replicas(plan) == {"strong": 8, "second": 1, "small": 1}


def test_replicas_are_no_more_than_have_a_full_batch() -> None:
    plan = make_plan(made("schedule=phased", *GPUS, "variants.strong.max_num_seqs=32"), [GPU8], num_prompts=40)
    # 40 prompts x 8 completions fill 10 batches of 32, more than 8 GPUs; 40 of the others fill one of 128.
    assert replicas(plan) == {"strong": 8, "second": 1, "small": 1}


def test_replicas_of_the_recipe_are_kept_and_the_rest_is_shared() -> None:
    plan = make_plan(made("schedule=streaming", *GPUS, "variants.second.replicas=3"), [GPU8])
    assert replicas(plan) == {"strong": 4, "second": 3, "small": 1}


def test_replicas_elastic_grow_within_their_bounds() -> None:
    plan = make_plan(made("schedule=phased", *GPUS, "variants.strong.replicas=[2, 4]"), [GPU8])
    assert replicas(plan)["strong"] == 4
    assert next(stage.elastic for stage in plan.stages if stage.variant == "strong") == (2, 4)
    assert next(stage.elastic for stage in plan.stages if stage.variant == "small") is None


def test_replicas_fractions_of_a_gpu_share_it() -> None:
    halves = [f"variants.{name}.gpus=0.5" for name in ("strong", "second", "small")]
    plan = make_plan(made("schedule=streaming", *halves), [Node(8, 2)])
    assert replicas(plan) == {"strong": 2, "second": 1, "small": 1}


def test_refit_takes_replicas_away_where_nodes_were_lost() -> None:
    plan = make_plan(made("schedule=streaming", *GPUS), [GPU8])
    assert replicas(plan) == {"strong": 6, "second": 1, "small": 1}
    left = refit(plan.stages, [Node(96, 4)])
    assert left is not None
    assert [stage.replicas for stage in left] == [2, 1, 1]
    assert refit(plan.stages, [Node(96, 2)]) is None  # three pools need three GPUs


def test_steps_are_one_for_streaming_and_one_a_pool_for_phased() -> None:
    assert make_plan(made("schedule=streaming"), CPU4).steps == [(0, 2)]
    assert make_plan(made("schedule=phased"), CPU4).steps == [(0, 0), (1, 1), (2, 2)]


def test_plan_of_an_added_strategy_owes_only_what_is_missing() -> None:
    before = made("strategies.refine=null", "strategies.nparam=null")
    plan = make_plan(made(), CPU4, made=before)
    # The revision of an answer that is there, and the answer of `small`; the bare answer of `strong` is shared.
    assert {stage.variant: stage.generations for stage in plan.stages} == {"strong": 1, "small": 1}
