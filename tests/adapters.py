"""Adapters of peft written by hand, and what they make of the weights of their base, by the formula alone."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

RANK, ALPHA = 3, 5


def matrices(weights: Mapping[str, Tensor], rank: int = RANK, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by the name of a weight [out, in]."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: 0.1 * torch.randn(shape, generator=generator)  # noqa: E731
    return {name: (draw(rank, value.shape[1]), draw(value.shape[0], rank)) for name, value in weights.items()}


def added(weight: Tensor, a: Tensor, b: Tensor, scale: float = ALPHA / RANK) -> Tensor:
    """W + scale B A, fp32."""
    return weight.float() + scale * (b.float() @ a.float())


def stored(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The tensors of an adapter file, by the weight's name in the model that was trained."""
    found = {}
    for name, (a, b) in pairs.items():
        module = name.removesuffix(".weight")
        found |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
    return found


def write(folder: Path, base: Path | str | None, tensors: Mapping[str, Tensor], **settings: object) -> Path:
    """adapter_config.json and adapter_model.safetensors, as peft writes them."""
    folder.mkdir(exist_ok=True)
    told = {
        "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": base and str(base), "bias": "none",
        "corda_config": None, "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False,
        "inference_mode": True, "init_lora_weights": True, "layer_replication": None, "loftq_config": {},
        "lora_alpha": ALPHA, "lora_bias": False, "lora_dropout": 0.05, "megatron_config": None,
        "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA", "peft_version": "0.18.1",
        "qalora_group_size": 16, "r": RANK, "rank_pattern": {}, "revision": None, "target_modules": ["q_proj"],
        "target_parameters": None, "task_type": "CAUSAL_LM", "trainable_token_indices": None, "use_dora": False,
        "use_qalora": False, "use_rslora": False,
    }  # fmt: skip
    told |= settings
    (folder / "adapter_config.json").write_text(json.dumps({k: v for k, v in told.items() if v is not ...}))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    return folder
