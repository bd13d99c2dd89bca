"""The recipe: one YAML file that says everything about a run, checked before anything starts.

Fields are documented under themselves; ``docs/recipe.md`` is made from these texts. Fields in ``OPERATIONAL`` say how
a run is made and may change between a run and its resumption; all others say what data comes out.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Limit = Annotated[float, Field(gt=0, le=1)]
Leak = Literal["form", "steering", "meta", "token", "role", "thought"]
# Fields of a variant that an endpoint's server was started with, and nothing here could change.
SERVERS_BUSINESS = (
    "revision",
    "dtype",
    "max_model_len",
    "trust_remote_code",
    "gpus",
    "max_num_batched_tokens",
    "gpu_memory",
    "kv_cache_gib",
)


class Section(BaseModel):
    """A part of the recipe: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )
    OPERATIONAL: ClassVar[frozenset[str]] = frozenset()
    # Fields that an older version did not know: at their default they are no part of what identifies a run's data, so
    # that its runs can go on.
    ADDED: ClassVar[frozenset[str]] = frozenset()


class Prompts(Section):
    """Where the prompts come from."""

    ADDED = frozenset({"near_duplicates", "decontaminate", "decontaminate_ngram", "decontaminate_share"})

    source: str | list[str] = Field(min_length=1)
    """A JSONL, JSON, Parquet or CSV file, a glob, `hf://NAME[:SPLIT]`, `builtin:demo`, or a list of these. Relative to
    the working directory."""
    column: str | None = None
    """The column of the prompt: text, or a list of `{role, content}` that ends with a user turn. Default: the first of
    `prompt`, `messages`, `instruction`, `question`, `text` that is there."""
    limit: PositiveInt | None = None
    """Take only the first so many prompts."""
    heldout: Fraction = 0.1
    """The share of prompts that training never sees and `evaluate` uses. By hash of the prompt: all pairs of one prompt
    fall on the same side."""
    max_tokens: PositiveInt = 1024
    """Longer prompts are set aside with the reason `over_input_limit` (paper: 1024). Counted by the
    run's tokenizers; where all variants are endpoints none is here, and four bytes of text stand for a token."""
    near_duplicates: Annotated[float, Field(ge=0.5, le=1)] | None = None
    """Set prompts aside that are this similar to an earlier one with the same turns before the last: the Jaccard
    similarity of their three-word shingles, ignoring case, spacing and punctuation. 0.8 finds light edits of a
    sentence; default: off. Equal prompts are dropped in any case (`docs/prompt.md`)."""
    decontaminate: list[str] = []
    """Evaluation sets, in the forms that `source` takes: prompts that overlap one of their prompts are set aside with
    the reason `contaminated`, and what they overlap. `--decontaminate FILE` sets it."""
    decontaminate_ngram: Annotated[int, Field(ge=5)] = 8
    """Words of the n-grams that count as overlap (Tülu 3: 8, GPT-3: 8 to 13). Shorter evaluation prompts have to
    stand in a prompt whole."""
    decontaminate_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of an evaluation prompt's words that shared n-grams must cover (Tülu 3: half)."""


class Sampling(Section):
    """How completions are drawn. What is not set comes from the checkpoint's own `generation_config.json`."""

    temperature: Annotated[float, Field(ge=0)] | None = None
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Nucleus sampling."""
    max_tokens: PositiveInt = 1024
    """New tokens at most (paper: 1024). A completion that reaches it is `truncated`."""
    min_tokens: Annotated[int, Field(ge=0)] = 0
    """New tokens at least. Small models often stop at once after a prefill; 16 cures it (`docs/method.md`)."""
    repetition_penalty: PositiveFloat | None = None
    """Above 1 repeated tokens become less likely. Small models fall into loops, which end as `truncated`."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that end a completion and are not part of it; a blank line keeps small models from rambling on."""


class Variant(Section):
    """A model under a name, with the engine that hosts it and what one replica of it is given."""

    OPERATIONAL = frozenset(
        {
            "cpus",
            "gpus",
            "replicas",
            "deadline",
            "max_num_seqs",
            "max_num_batched_tokens",
            "gpu_memory",
            "kv_cache_gib",
            "speed",
            "url",
            "api_key_env",
            "request_timeout",
            "patience",
        }
    )

    model: str = "scripted"
    """A Hugging Face folder, a hub name, or `embedded:smollm2-135m` (`-120m`, `-113m`: its depth-pruned siblings).
    Engine `endpoint`: the name under which the server serves it."""
    revision: str | None = None
    """The hub revision; pin it for a data set that can be made again."""
    engine: Literal["vllm", "endpoint", "reward", "scripted"] = "vllm"
    """`vllm`: in the pool's actors. `endpoint`: an OpenAI-compatible server at `url`. `reward`: a
    sequence classifier with one label, for `scores.reward`. `scripted`: deterministic text and no model, for dry runs
    and scale tests."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """On a CPU vLLM's bfloat16 changes greedy text against `transformers`; float32 does not."""
    max_model_len: PositiveInt | None = None
    """Tokens of prompt and answer together; default: the checkpoint's own."""
    trust_remote_code: bool = False
    """Run code that comes with the checkpoint. Off unless you have read it."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    """Overrides `sampling.temperature` for this variant."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Overrides `sampling.top_p` for this variant."""
    cpus: PositiveInt | None = None
    """Logical CPUs of one replica. Default on a machine without GPU: all there are, shared between the variants that
    run at the same time; with GPUs: 1."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs of one replica: a fraction shares one, a whole number above 1 is tensor parallel within a node."""
    replicas: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Engines of this variant: a number, or `[1, 8]` for a pool that grows and shrinks with its load. Default: planned;
    in `phased` as many as the machine or cluster has room for, in `streaming` shared by the tokens that each owes."""
    deadline: PositiveFloat = 600
    """Seconds without any completion or sign of life after which an engine with requests is taken to hang and is
    replaced. Longer than its longest answer takes."""
    max_num_seqs: PositiveInt = 128
    """Sequences that one engine decodes at once; of an endpoint, requests that are in flight at most."""
    max_num_batched_tokens: PositiveInt | None = None
    """Tokens of one engine step. Default: 8192, and on a CPU at least `max_model_len`, because seeded prompts must not
    be prefilled in chunks there."""
    gpu_memory: Annotated[float, Field(gt=0, le=1)] = 0.9
    """The share of the GPU's memory that an engine takes; of a fraction of a GPU, the share of that fraction."""
    kv_cache_gib: PositiveFloat = 2.0
    """Memory for the key-value cache of an engine on a CPU, in GiB."""
    speed: PositiveFloat | None = None
    """Engine `scripted` only: tokens per second of one sequence. Default: at once."""
    url: str | None = None
    """Engine `endpoint` only: the server's address, mostly up to and with `/v1`. It may change between a run
    and its resumption: it is the model that makes the data."""
    api_key_env: str | None = None
    """Engine `endpoint` only: the environment variable that holds the server's key, where the command is started.
    Default: no key is sent, whatever the environment holds."""
    request_timeout: PositiveFloat = 300
    """Engine `endpoint` only: seconds after which an attempt is given up. Longer than the longest answer takes."""
    patience: Annotated[float, Field(ge=0)] = 300
    """Engine `endpoint` only: seconds that the server may be out before the run stops; a shorter outage costs no
    completion."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> Variant:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus is {self.gpus}: a fraction below 1 or a whole number")
        if isinstance(self.replicas, tuple) and self.replicas[0] > self.replicas[1]:
            raise ValueError(f"replicas is [{self.replicas[0]}, {self.replicas[1]}]: the smaller number first")
        if self.speed is not None and self.engine != "scripted":
            raise ValueError("speed is for engine 'scripted'")
        return self

    @model_validator(mode="after")
    def _endpoint(self) -> Variant:
        def first_set(*names: str) -> str | None:
            fields = type(self).model_fields
            return next((name for name in names if getattr(self, name) != fields[name].default), None)

        if self.engine != "endpoint":
            if name := first_set("url", "api_key_env", "request_timeout", "patience"):
                raise ValueError(f"{name} is for engine 'endpoint'")
            return self
        if name := first_set(*SERVERS_BUSINESS):
            raise ValueError(f"{name} is the server's own business with engine 'endpoint'; leave it out here")
        if self.model == "scripted":
            raise ValueError("engine 'endpoint' needs model, the name under which the server serves it")
        if self.url is None:
            raise ValueError("engine 'endpoint' needs url, such as http://host:8000/v1")
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("url is not of the form http://host:8000/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("url holds more than an address; a key goes into the variable that api_key_env names")
        # Lower case letters too would let a key through, and the recipe is stored.
        if self.api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env):
            raise ValueError("api_key_env is not the NAME of an environment variable; a key is never in a recipe")
        return self


class StrategySettings(Section):
    """One strategy: its weight, and what the strategy itself takes (`variant`, `chosen`, `format`, ...)."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
    OPERATIONAL = frozenset({"weight"})

    weight: Annotated[float, Field(ge=0)] = 1.0
    """The share of this strategy's pairs that training uses, against the largest weight: 1, 1, 0.5 trains on half of
    the third's pairs. The choice is by pair id and does not change between runs."""
    samples: PositiveInt = 1
    """Pairs per prompt, each drawn anew. More of one contrast is no substitute for more contrasts: six epochs of fresh
    prefix pairs reach 2.8 on Arena-Hard, the six strategies once 5.5 (PopAlign, section 5)."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Scores(Section):
    """What is measured about the pairs beside their provenance, and which strategies it proves right or wrong. Adding
    this section to a finished run measures its pairs and generates nothing else."""

    OPERATIONAL = frozenset({"keep"})

    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of prompts whose pairs are measured, by hash of the prompt."""
    margin: bool = True
    """Log-probabilities of both answers after both sides' requests, from the generating engines; no judge is needed.
    Not for strategies with a variant behind an endpoint."""
    judge: str | None = None
    """The variant that judges each pair in both orders. One of another family than the generators: judges prefer their
    own kin."""
    reward: str | None = None
    """A variant of engine `reward` that scores each answer."""
    keep: Literal["all", "margin", "judge", "reward"] = "all"
    """`all`: the label is the provenance, as in the paper. Otherwise measured pairs are rejected as `disagrees` where
    that measurement does not say that the chosen answer is the better one; pairs that were not measured stay."""


class CheckSettings(Section):
    """What a pair must pass to be kept. Nothing here changes a generation: `popalign pairs RUN --set checks.KEY=VALUE`
    checks a finished run again. `unparseable`, `empty` and `identical` always stand, since such rows are no pairs. How
    often each check is right, and the measurements behind the defaults: `docs/quality.md`."""

    truncated: bool = True
    """Reject answers that ended at the token limit."""
    unfinished: bool = True
    """Reject answers that end on a colon, with nothing of what they announce."""
    echo: bool = True
    """Reject answers that copy a placeholder of the form instead of filling it in."""
    leak: list[Leak] = ["form", "steering", "meta", "token", "role", "thought"]
    """The kinds of leak that are looked for: `form` (`Thought:`, `Response:`), `steering` (affix, demonstration,
    instruction), `meta` (the answer speaks of a good, bad or better response, and the prompt of none; English only),
    `token` (of chat templates, such as `<|im_start|>`), `role` (`User:`, `### Instruction`) and `thought` (its opening,
    or tags such as `<think>`). `[]` looks for none."""
    repetition: Limit | None = 0.5
    """Reject answers of which this share of word 4-grams has come before, half of the lines repeat others, or a quarter
    is one loop. null: none."""
    language: bool = True
    """Reject answers in another language than the prompt, unless the prompt speaks of languages."""
    prompt_copy: Limit | None = 0.8
    """Reject answers that are the prompt again, instruction and all, with this share of words in common. null: none."""
    refusal: Literal["auto", "benign", "harmful"] | None = "auto"
    """Reject a chosen refusal where the prompt is benign, and a chosen answer beside a rejected refusal where it asks
    for harm. `benign` and `harmful` say what all prompts are; `auto` goes by the words of each prompt and by how many
    of its answers refuse, and misses much. null: neither is looked for. English only."""
    near_identical: Limit | None = 0.95
    """Reject pairs of 20 words a side or more that have this share of words in common, in order, and differ in no
    number and no negation. null: none."""
    near_duplicate: Annotated[float, Field(ge=0.5, le=1)] | None = None
    """Reject a pair whose two answers are near to those of an earlier one, whatever its prompt: the Jaccard similarity
    of their word 3-grams reaches this. Default: none is looked for."""


class TargetMargin(Section):
    """By how much a pair's two answers are to come apart, from how far its score says that they are: with it, DPO's
    log-ratio difference is lessened by ``scale`` x the score, cut at +-``clamp``, before beta and the sigmoid (DLMA,
    arXiv 2402.11907; its values are the defaults). Pairs that were not measured have 0, plain DPO."""

    by: Literal["margin", "reward"]
    """The score: the margin in nats, or the difference of the rewards. `scores` must ask for it."""
    scale: PositiveFloat = 0.2
    """Nats of the log-ratio difference per unit of the score."""
    clamp: PositiveFloat = 40.0
    """The largest score that counts, in either direction."""


class Train(Section):
    """DPO on the kept pairs. The defaults are the paper's (PopAlign, section 4.1)."""

    variant: str
    """The variant whose checkpoint is aligned (paper: the small one)."""
    workers: PositiveInt = 1
    """Ray Train workers, one process each."""
    cpus_per_worker: PositiveInt = 1
    """Logical CPUs of one worker."""
    gpus_per_worker: Literal[0, 1] = 0
    """1: train on GPUs, one a worker."""
    beta: PositiveFloat = 0.01
    """DPO's inverse temperature."""
    learning_rate: PositiveFloat = 5e-7
    """Peak learning rate, cosine schedule."""
    warmup: Fraction = 0.1
    """Share of the steps that warm up."""
    epochs: PositiveInt = 1
    """Times that each pair is seen."""
    max_pairs: PositiveInt | None = None
    """Train on at most so many pairs, drawn by pair id; default: all that the weights leave."""
    weight_by: Literal["margin", "judge", "reward"] | None = None
    """Draw each measured pair with the probability that this score gives its label: the logistic function of the margin
    or of the difference of rewards; a judge's verdict counts 1, a tie 1/2, the opposite 0. `scores` must ask for it."""
    target_margin: TargetMargin | None = None
    """DPO with a margin of its own for each pair. Default: none, as in the paper."""
    batch_size: PositiveInt = 128
    """Pairs of one optimiser step over all workers (paper: 128; 32 for a single strategy)."""
    micro_batch_size: PositiveInt = 1
    """Pairs that one worker computes at once."""
    max_length: PositiveInt = 2048
    """Tokens of prompt and answer; longer ones are cut at the end."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of forward and backward; weights and optimiser stay in fp32."""
    gradient_checkpointing: bool = True
    """Less memory for a third more time."""
    sharding: Literal["none", "zero2", "zero3"] = "none"
    """Spread optimiser and gradients (`zero2`, the paper's) or parameters too (`zero3`) over the workers (FSDP)."""
    save_steps: PositiveInt = 200
    """Optimiser steps between checkpoints; an interrupted training goes on from the last one."""
    max_failures: Annotated[int, Field(ge=0)] = 1
    """Times that a lost worker may restart the training from its last checkpoint."""


class Evaluate(Section):
    """What `evaluate` looks at on the held-out prompts."""

    max_pairs: PositiveInt | None = None
    """Held-out pairs per strategy at most; default: all."""
    samples: Annotated[int, Field(ge=0)] = 4
    """Prompts answered by the model before and after, side by side."""
    sample_tokens: PositiveInt = 128
    """New tokens of such an answer."""


class Recipe(Section):
    """A run."""

    OPERATIONAL = frozenset(
        {"run", "schedule", "checks", "train", "evaluate", "rows_per_task", "max_failure_rate", "balance_length"}
    )

    run: str = Field(min_length=1)
    """The run directory: prompts, generations, pairs and model are written below it."""
    seed: int = 0
    """Seeds every request together with the generation's id: the same recipe makes the same requests."""
    preset: str = "leaderboard"
    """The wording: `alignment` (helpful and harmless), `leaderboard` (good, bad), or a YAML file of the same form."""
    share: bool = True
    """Make a generation that several strategies need once; false: sample it for each of them."""
    prompts: Prompts
    sampling: Sampling = Sampling()
    variants: dict[Name, Variant] = Field(min_length=1)
    strategies: dict[Name, StrategySettings] = Field(min_length=1)
    schedule: Literal["auto", "streaming", "phased"] = "auto"
    """`streaming`: all pools at once; `phased`: one variant after another, each with the whole machine; `auto`:
    streaming where all pools fit at once and none would be much slower than the others."""
    rows_per_task: PositiveInt | None = None
    """Prompts of one Ray task, which is also the least that is stored at once; a replica works on several tasks.
    Default: eight tasks a replica or more, with 64 prompts at most, and up to 1,024 where a replica has thousands."""
    max_failure_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of completions that may fail, looked at after the first hundred; above it the run stops early and says
    why they failed."""
    scores: Scores | None = None
    balance_length: PositiveFloat | None = None
    """Train on as many pairs of each strategy as leave the token lengths of both sides apart by at most this Cohen's d
    (0.2 is called small), matched at every size of the difference. Default: all pairs, whatever their lengths."""
    checks: CheckSettings = CheckSettings()
    train: Train | None = None
    evaluate: Evaluate = Evaluate()
