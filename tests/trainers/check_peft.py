"""What does peft itself make of an adapter? check_peft.py BASE ADAPTER MERGED all|attention

Writes an adapter of the model in BASE, with random matrices in the place of trained ones, as peft saves it; then merges
it by merge_and_unload, and writes that as whole weights.
"""

import sys

import peft
import torch
import transformers

WAYS = {
    "attention": {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 6},
    "all": {"target_modules": "all-linear", "r": 4, "lora_alpha": 6, "use_rslora": True, "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"v_proj": 11}, "modules_to_save": ["linear_1", "merger"]},
}  # fmt: skip


def model(folder: str) -> transformers.PreTrainedModel:
    return transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


def main(base: str, adapter: str, merged: str, way: str) -> None:
    torch.manual_seed(0)
    tuned = peft.get_peft_model(model(base), peft.LoraConfig(**WAYS[way]))
    for name, weight in tuned.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            weight.data.normal_(0, 0.05)
    tuned.save_pretrained(adapter)
    peft.PeftModel.from_pretrained(model(base), adapter).merge_and_unload().save_pretrained(merged)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
