"""One round of training by TRL: train.py OUT RECIPE. Beside the trained model it writes trained_on.json, the ids that
the trainer trained on, row by row.

RECIPE is a JSON object: model (a folder in transformers' layout), dataset (a folder of `data-engine export`), method
(dpo or sft), num_rows, learning_rate, epochs, seed. One thread.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import datasets
import torch
import transformers
import trl

IGNORED = -100


@dataclass(frozen=True)
class Recipe:
    """The fields of RECIPE."""

    model: str
    dataset: str
    method: str
    num_rows: int | None
    """None: all"""
    learning_rate: float
    epochs: int
    seed: int
    batch_size: int = 32
    beta: float = 0.1
    warmup_steps: int = 10
    sft_weight: float = 0.0
    """of the negative log-likelihood of chosen, beside DPO's loss (RPO, arXiv:2404.19733)"""


class Recording:
    """A collator that keeps the ids of what it lays together: prompt and answer of each row, padding left out."""

    def __init__(self, collator) -> None:
        self.collator, self.rows = collator, set()

    def __call__(self, examples: list) -> Mapping:
        batch = self.collator(examples)
        labels = batch.get("completion_mask", None)
        is_answer = labels.bool() if labels is not None else batch["labels"] != IGNORED
        for ids, used, answer in zip(batch["input_ids"], batch["attention_mask"].bool(), is_answer, strict=True):
            self.rows.add((tuple(ids[used & ~answer].tolist()), tuple(ids[used & answer].tolist())))
        return batch


def train(recipe: Recipe, out: str) -> None:
    """Train, and write model, processor and trained_on.json."""
    transformers.set_seed(recipe.seed)
    rows = datasets.load_dataset(recipe.dataset, split="train")
    if recipe.num_rows is not None:
        rows = rows.select(range(recipe.num_rows))
    processor = transformers.AutoProcessor.from_pretrained(recipe.model)
    shared = {
        "output_dir": out, "num_train_epochs": recipe.epochs, "per_device_train_batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate, "warmup_steps": recipe.warmup_steps, "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0, "max_length": None, "seed": recipe.seed, "data_seed": recipe.seed, "use_cpu": True,
        "bf16": False, "report_to": [], "save_strategy": "no", "logging_steps": 10, "gradient_checkpointing": False,
        "disable_tqdm": True,
    }  # fmt: skip
    # Given as a folder, it would be loaded in bf16.
    model = transformers.LlavaForConditionalGeneration.from_pretrained(recipe.model, dtype=torch.float32)
    # As LLaVA's own training does it.
    model.model.vision_tower.requires_grad_(False)
    if recipe.method == "dpo":
        losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, recipe.sft_weight]}
        arguments = trl.DPOConfig(beta=recipe.beta, **(losses if recipe.sft_weight else {}), **shared)
        trainer = trl.DPOTrainer(model=model, args=arguments, train_dataset=rows, processing_class=processor)
    else:
        arguments = trl.SFTConfig(completion_only_loss=True, **shared)
        trainer = trl.SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=processor)
    recording = trainer.data_collator = Recording(trainer.data_collator)
    trainer.train()
    trainer.save_model(out)
    processor.save_pretrained(out)
    Path(out, "trained_on.json").write_text(json.dumps(sorted(recording.rows)))
    Path(out, "losses.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Recipe(**json.loads(sys.argv[2])), sys.argv[1])
