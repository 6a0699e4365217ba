"""What does peft itself make of an adapter? check_peft.py BASE ADAPTER MERGED all|attention|own

Writes an adapter of the model in BASE, with random matrices in the place of trained ones, as peft saves it; then merges
it by merge_and_unload, and writes that as whole weights. `own` is for layouts that transformers does not read: peft
then works on modules of the names that the weights have, as it does on those of remote code.
"""

import shutil
import sys
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

WAYS = {
    "attention": {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 6},
    "all": {"target_modules": "all-linear", "r": 4, "lora_alpha": 6, "use_rslora": True, "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"v_proj": 11}, "modules_to_save": ["linear_1", "merger"]},
    # Of LLaVA's, OmniLMM's and InternVL's own modules, packed ones among them.
    "own": {"target_modules": r".*\.(q_proj|v_proj|down_proj|fc1|qkv|kv_proj|wqkv|w2|qkv_proj|gate_up_proj)", "r": 4,
            "lora_alpha": 6, "use_rslora": True, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"fc1": 11},
            "modules_to_save": ["mm_projector", "mlp1"]},
}  # fmt: skip


def model(folder: str) -> transformers.PreTrainedModel:
    return transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


def own_modules(folder: str) -> torch.nn.Module:
    """A tree of modules by the names of the weights, fp32; it can be changed and saved, and not be run."""
    tensors: dict[str, torch.Tensor] = {}
    for file in Path(folder).glob("*.safetensors"):
        tensors |= {name: value.float() for name, value in load_file(file).items()}
    root = torch.nn.Module()
    for name, value in tensors.items():
        path, _, leaf = name.rpartition(".")
        owner = root
        *above, last = path.split(".")
        for part in above:
            if part not in owner._modules:
                owner.add_module(part, torch.nn.Module())
            owner = owner._modules[part]
        if last not in owner._modules:
            weight = tensors.get(f"{path}.weight")
            linear = weight is not None and weight.ndim == 2 and "embed" not in last
            owner.add_module(last, torch.nn.Linear(*weight.T.shape, bias=False) if linear else torch.nn.Module())
        owner._modules[last].register_parameter(leaf, torch.nn.Parameter(value))
    return root


def save_own(root: torch.nn.Module, base: str, merged: str) -> None:
    """The files of `base`, with the weights of the modules in one."""
    shutil.copytree(base, merged, ignore=shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json"))
    save_file({name: value.contiguous() for name, value in root.state_dict().items()}, f"{merged}/model.safetensors")


def main(base: str, adapter: str, merged: str, way: str) -> None:
    torch.manual_seed(0)
    made = own_modules if way == "own" else model
    tuned = peft.get_peft_model(made(base), peft.LoraConfig(**WAYS[way]))
    for name, weight in tuned.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            weight.data.normal_(0, 0.05)
    tuned.peft_config["default"].base_model_name_or_path = base
    tuned.save_pretrained(adapter)
    whole = peft.PeftModel.from_pretrained(made(base), adapter).merge_and_unload()
    save_own(whole, base, merged) if way == "own" else whole.save_pretrained(merged)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
