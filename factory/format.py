"""What other trainers read: each format is one function from the kept pairs of a prompt to its rows, as the target's
own documentation describes them. Nothing else of a pair is passed on: a column that is not documented may mean
something (OpenRLHF reads ``margin`` as the distance of two rewards, and ours is one of log-probabilities)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Pair = dict[str, Any]  # a row of pairs as `factory.shard.PAIR` has it
Row = dict[str, Any]


def trl(pairs: Sequence[Pair]) -> list[Row]:
    """Preference with an explicit prompt, conversational: ``prompt``, ``chosen``, ``rejected``, each a list of
    ``{role, content}`` (TRL, docs/source/dataset_formats.md, "Preference")."""
    return [{name: pair[name] for name in ("prompt", "chosen", "rejected")} for pair in pairs]


def trl_implicit(pairs: Sequence[Pair]) -> list[Row]:
    """Preference with an implicit prompt: ``chosen`` and ``rejected`` are whole conversations that begin alike (TRL,
    docs/source/dataset_formats.md, "Preference"; its reward trainer and older readers take this one)."""
    return [{side: pair["prompt"] + pair[side] for side in ("chosen", "rejected")} for pair in pairs]


def kto(pairs: Sequence[Pair]) -> list[Row]:
    """Unpaired preference: ``prompt``, ``completion``, ``label`` (TRL, docs/source/dataset_formats.md, "Unpaired
    preference"). Two rows a pair, as TRL's own ``unpair_preference_dataset`` makes them: an answer that is chosen by
    one strategy and rejected by another is there with both labels."""
    return [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs
        for side in ("chosen", "rejected")
    ]


def nemo_rl(pairs: Sequence[Pair]) -> list[Row]:
    """``context`` and two ``completions`` with ``rank`` 0 (preferred) and 1, for ``PreferenceDataset`` (NeMo RL,
    docs/guides/dpo.md, "Datasets": "DPO training supports only two completions")."""
    return [
        {
            "context": pair["prompt"],
            "completions": [{"rank": 0, "completion": pair["chosen"]}, {"rank": 1, "completion": pair["rejected"]}],
        }
        for pair in pairs
    ]


# The values of LLaMA-Factory's tags that its sharegpt format expects where an entry does not name others.
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}


def llama_factory(pairs: Sequence[Pair]) -> list[Row]:
    """Sharegpt with ranking: ``conversations``, ``chosen`` and ``rejected`` of ``{from, value}`` (LLaMA-Factory,
    data/README.md, "Sharegpt Format", "Preference Dataset"). Its converter skips conversations in which user and
    assistant do not take turns; a system turn may stand first."""

    def turn(message: dict[str, str]) -> dict[str, str]:
        return {"from": SHAREGPT[message["role"]], "value": message["content"]}

    return [
        {
            "conversations": [turn(message) for message in pair["prompt"]],
            "chosen": turn(pair["chosen"][-1]),
            "rejected": turn(pair["rejected"][-1]),
        }
        for pair in pairs
    ]


def dataset_info(files: Sequence[str]) -> dict[str, Any]:
    """The entries of LLaMA-Factory's ``dataset_info.json`` for its files, named ``popalign_train`` and the like."""
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    return {
        f"popalign_{file.partition('.')[0]}": {
            "file_name": file,
            "formatting": "sharegpt",
            "ranking": True,
            "columns": columns,
        }
        for file in files
    }


def axolotl(pairs: Sequence[Pair]) -> list[Row]:
    """``messages`` and one message each as ``chosen`` and ``rejected``, for ``type: chat_template.default`` with
    ``rl: dpo`` (Axolotl, docs/rlhf.qmd, "chat_template.default")."""
    return [
        {"messages": pair["prompt"], "chosen": pair["chosen"][-1], "rejected": pair["rejected"][-1]} for pair in pairs
    ]


def openrlhf(pairs: Sequence[Pair]) -> list[Row]:
    """``chosen`` and ``rejected`` as whole conversations, for ``--apply_chat_template`` with the default keys and no
    ``--prompt_key`` (OpenRLHF, openrlhf/datasets/reward_dataset.py, ``preprocess_data``: all but the last turn of
    ``chosen`` is the prompt)."""
    return trl_implicit(pairs)


def jsonl(pairs: Sequence[Pair]) -> list[Row]:
    """The rows of pairs as they are stored, with provenance and scores (``factory.shard.PAIR``)."""
    return list(pairs)


def kwise(pairs: Sequence[Pair]) -> list[Row]:
    """One row a prompt: its different answers with ``rank`` 0 (only ever chosen), 1 (chosen by one strategy, rejected
    by another) or 2 (only ever rejected), best first. Ours, after Nectar's ``prompt`` and ``answers`` of ``{answer,
    rank}`` (Axolotl, docs/rlhf.qmd, "zephyr.nectar"), with ties and messages. Equal texts are one answer."""
    answers: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        for side in ("chosen", "rejected"):
            text = pair[side][-1]["content"]
            answer = answers.setdefault(text, {"answer": pair[side], "chosen_by": [], "rejected_by": []})
            answer[f"{side}_by"].append(pair["strategy"])
    ranked = [
        {"rank": 1 if answer["chosen_by"] and answer["rejected_by"] else 2 * (not answer["chosen_by"]), **answer}
        for answer in answers.values()
    ]
    prompt = {name: pairs[0][name] for name in ("prompt_id", "prompt")}
    return [{**prompt, "answers": sorted(ranked, key=lambda answer: int(answer["rank"]))}]


FORMATS: dict[str, Callable[[Sequence[Pair]], list[Row]]] = {
    "trl": trl,
    "trl-implicit": trl_implicit,
    "kto": kto,
    "nemo-rl": nemo_rl,
    "llama-factory": llama_factory,
    "axolotl": axolotl,
    "openrlhf": openrlhf,
    "jsonl": jsonl,
    "kwise": kwise,
}
