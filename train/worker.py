"""What each Ray Train worker does: TRL's DPOTrainer over the same memory-mapped pairs. Imports torch at its top; the
command line imports this module only when it trains."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any, cast

import ray.train
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from factory.recipe import Train


class Reporter(TrainerCallback):
    """Appends what the trainer logs to a file of JSON lines, from the first worker alone."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if state.is_world_process_zero and logs:
            numbers = {name: float(value) for name, value in logs.items()}
            row = {"step": state.global_step, "of": state.max_steps, "time": time.time(), **numbers}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


class Collator(DataCollatorForPreference):
    """TRL's, with the pairs' target margins beside their tokens."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        batch["target_margin"] = torch.tensor([example["target_margin"] for example in examples])
        return batch


class MarginTrainer(DPOTrainer):
    """DPO with a target margin for each pair: -log sigmoid(beta x (log-ratio difference - margin)).

    The same loss has plain DPO with a reference that gives the chosen answer as many nats more, and TRL takes the
    reference's log-probabilities from the batch where ``precompute_ref_logps`` is set. The rewards that it logs are
    what goes beyond the margin.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        theirs = cast(DataCollatorForPreference, cast(Any, self).data_collator)
        self.data_collator = Collator(**dataclasses.asdict(theirs))
        self.precompute_ref_logps = True

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        batch = {name: value for name, value in inputs.items() if name != "target_margin"}
        chosen, rejected = self.compute_ref_log_probs(self.ref_model, batch)
        batch |= {"ref_chosen_logps": chosen + inputs["target_margin"], "ref_rejected_logps": rejected}
        return super().compute_loss(model, batch, return_outputs, num_items_in_batch)


def loop(config: dict[str, Any]) -> None:
    """Train on this worker and, on the first one, save the model. ``config`` is made by ``train.dpo``."""
    settings = Train.model_validate(config["train"])
    rank = ray.train.get_context().get_world_rank()
    _log_to(Path(config["logs"]) / f"train-{rank}.log")
    if not settings.gpus_per_worker:
        torch.set_num_threads(settings.cpus_per_worker)
    # Weights and optimiser stay in float32: at DPO's learning rates an update is smaller than bfloat16 can hold.
    load = {"revision": config["revision"], "trust_remote_code": config["trust_remote_code"]}
    model = AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.float32, **load)
    # Held in memory rather than computed ahead: TRL's own cache of reference log-probabilities is one file that is
    # found again by a hash of the data set, and is not safe with several nodes on one storage.
    reference = AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.float32, **load)
    tokenizer = AutoTokenizer.from_pretrained(config["model"], **load)
    options: dict[str, Any] = {
        "model": model,
        "ref_model": reference,
        "args": arguments(settings, config),
        "train_dataset": Dataset.from_file(config["pairs"]),
        "processing_class": tokenizer,
        "callbacks": [Reporter(Path(config["logs"]) / "train.jsonl")],
    }
    trainer = MarginTrainer(**options) if settings.target_margin else DPOTrainer(**options)
    trainer.train(resume_from_checkpoint=last_checkpoint(Path(config["checkpoints"])))
    # All workers take part: with sharded weights each holds a part.
    trainer.save_model(config["target"])
    if rank == 0:
        tokenizer.save_pretrained(config["target"])
        model.generation_config.save_pretrained(config["target"])


def arguments(settings: Train, config: dict[str, Any]) -> DPOConfig:
    """The recipe's settings in TRL's words."""
    per_step = settings.workers * settings.micro_batch_size
    return DPOConfig(
        output_dir=config["checkpoints"],
        beta=settings.beta,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,  # a share of all steps where it is below 1
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.batch_size // per_step,
        max_length=settings.max_length,
        remove_unused_columns=settings.target_margin is None,  # the margins are no input of the model
        bf16=settings.precision == "bf16",
        gradient_checkpointing=settings.gradient_checkpointing,
        # FSDP2: ZeRO-2 keeps the gathered parameters between forward and backward, ZeRO-3 gives them back.
        fsdp=None if settings.sharding == "none" else True,
        fsdp_config={"reshard_after_forward": settings.sharding == "zero3"},
        use_cpu=not settings.gpus_per_worker,
        ddp_backend=None if settings.gpus_per_worker else "gloo",
        seed=config["seed"],
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint; the trainer's state is what it writes last."""
    found = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return str(max(found, key=lambda path: int(path.name.rpartition("-")[2]))) if found else None


def _log_to(path: Path) -> None:
    """Send what libraries print in this worker to the run's logs."""
    if not path.parent.is_dir():
        return
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
