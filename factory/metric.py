"""The figures of a run as Ray metrics, which Ray's agent on every node serves to Prometheus (with ``ray_`` in front).

One writer, the driver: it looks at the board once a second anyway. Counters count what this command has done; they
stay readable after it as long as the cluster lives, the gauges for about half a minute.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from factory.board import View
from factory.figure import Figures, Pace

# name -> (tags besides the run, what it says)
COUNTERS = {
    "popalign_prompts_total": (("variant",), "Prompts that have passed the variant."),
    "popalign_completions_total": (("variant",), "Completions made."),
    "popalign_failed_total": (("variant", "kind"), "Completions that failed, by kind of error."),
    "popalign_prompt_tokens_total": (("variant",), "Prompt tokens of the completions made."),
    "popalign_cached_tokens_total": (("variant",), "Prompt tokens of them that came from the prefix cache."),
    "popalign_tokens_total": (("variant",), "New tokens of the completions made."),
    "popalign_faults_total": (("variant",), "Replicas that were lost."),
}
GAUGES = {
    "popalign_queue": (("variant",), "Requests that the engines have and have not finished."),
    "popalign_replicas": (("variant", "state"), "Replicas that serve or start."),
    "popalign_prompts_wanted": (("variant",), "Prompts that are to pass the variant in this step of the command."),
    "popalign_prompts_left": (("variant",), "Prompts of these that have not passed it yet."),
    "popalign_remaining_seconds": ((), "Expected time until the step ends."),
}


class Metrics:
    """The metrics of one command; ``run`` is the name of its run directory."""

    def __init__(self, run: str) -> None:
        self._counters = {name: Counter(name, text, ("run", *tags)) for name, (tags, text) in COUNTERS.items()}
        self._gauges = {name: Gauge(name, text, ("run", *tags)) for name, (tags, text) in GAUGES.items()}
        for metric in (*self._counters.values(), *self._gauges.values()):
            metric.set_default_tags({"run": run})
        self._counted: Counts[tuple[str, ...]] = Counts()

    def show(self, view: View) -> None:
        """What all variants of the command have done and do."""
        for variant, total in view.totals.items():
            self._count("popalign_prompts_total", total.prompts, variant=variant)
            self._count("popalign_completions_total", total.requests, variant=variant)
            self._count("popalign_prompt_tokens_total", total.prompt_tokens, variant=variant)
            self._count("popalign_cached_tokens_total", total.cached_tokens, variant=variant)
            self._count("popalign_tokens_total", total.tokens, variant=variant)
            for kind, number in total.errors.items():
                self._count("popalign_failed_total", number, variant=variant, kind=kind)
            self._set("popalign_queue", total.waiting, variant=variant)
            self._set("popalign_replicas", total.replicas, variant=variant, state="serving")
            self._set("popalign_replicas", total.starting, variant=variant, state="starting")
        for variant, number in Counts(fault.variant for fault in view.faults).items():
            self._count("popalign_faults_total", number, variant=variant)

    def show_step(self, figures: Mapping[str, Figures], pace: Pace) -> None:
        """How far the step is."""
        for variant, figure in figures.items():
            self._set("popalign_prompts_wanted", figure.wanted, variant=variant)
            self._set("popalign_prompts_left", figure.wanted - figure.prompts, variant=variant)
        if pace.left is not None:
            self._set("popalign_remaining_seconds", pace.left)

    def _count(self, name: str, number: int, **tags: str) -> None:
        more = number - self._counted[name, *tags.values()]
        if more > 0:  # Ray's counters take nothing else
            self._counters[name].inc(more, tags)
            self._counted[name, *tags.values()] = number

    def _set(self, name: str, value: float, **tags: str) -> None:
        self._gauges[name].set(value, tags)
