"""A tiny replica of each layout of docs/published-pairs.md, as flags of a run, and what `validate` says of it.

A layout that the product learns to read is one changed line of REPLICAS, and one cell of the page.
"""

import functools
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
GOLDENS = HERE / "goldens"
# The tiny checkpoints of transformers' families, whose folder pytest adds for the tests in it alone.
sys.path.append(str(HERE / "families"))

Flags = dict[str, str]
RANK = 2


@dataclass(frozen=True)
class Replica:
    """What takes the place of a layout's published pairs."""

    make: Callable[[Path], Flags]
    """from an empty folder to the flags of the pair that is written into it"""
    family: str | None = None
    """of both models, where the product reads the layout"""
    refusal: str = ""
    """what `validate` says, where it does not"""


def golden(name: str, folder: Path) -> Flags:
    """The pair of the goldens, in the layout in which the reference's checkpoints are published."""
    return pair(GOLDENS / name / "instruct", GOLDENS / name / "reward")


def family(name: str, folder: Path) -> Flags:
    """One of transformers' families: both models have the same weights, which `validate` does not read."""
    from checkpoints import Checkpoint

    made = Checkpoint(name, folder).folder
    return pair(made, made)


def internvl(folder: Path) -> Flags:
    """InternVL 2.5's own layout, with an InternLM2 decoder."""
    import internvl_folders

    return pair(*(internvl_folders.write(folder / role, "internlm2") for role in ("instruct", "reward")))


def own_code(config: dict, folder: Path) -> Flags:
    """A layout of which config.json alone matters, since nothing behind it is looked at."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    return pair(folder, folder)


def llava_1_6(folder: Path) -> Flags:
    """LLaVA-1.6 in its own layout: that of LLaVA-1.5, with pictures in tiles and a vector between their lines."""
    made = Path(shutil.copytree(GOLDENS / "llava/instruct", folder / "llava-1.6"))
    shutil.copytree(GOLDENS / "llava/openai", folder / "openai")
    config = json.loads((made / "config.json").read_text())
    tiles = {"model_type": "llava_llama", "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
    (made / "config.json").write_text(json.dumps(config | tiles))
    shards = sorted(made.glob("model-*.safetensors"))
    tensors = {name: value for shard in shards for name, value in load_file(shard).items()}
    for file in (*shards, made / "model.safetensors.index.json"):
        file.unlink()
    save_file(tensors | {"model.image_newline": torch.zeros(config["hidden_size"])}, made / "model.safetensors")
    return pair(made, made)


def adapter(base: Callable[[Path], Flags], decoder: str, folder: Path) -> Flags:
    """An adapter of peft on a base of another layout, whose config.json says a path of where it was trained."""
    (folder / "base").mkdir()
    instruct = base(folder / "base")["instruct_model_path"]
    made = folder / "adapter"
    made.mkdir()
    told = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none",
            "target_modules": ["q_proj"], "base_model_name_or_path": "/checkpoints/base"}  # fmt: skip
    (made / "adapter_config.json").write_text(json.dumps(told))
    module = f"base_model.model.{decoder}.layers.0.self_attn.q_proj"
    # All tiny decoders here are 64 wide, and so are their queries.
    low = {f"{module}.lora_A.weight": torch.zeros(RANK, 64), f"{module}.lora_B.weight": torch.zeros(64, RANK)}
    save_file(low, made / "adapter_model.safetensors")
    return pair(instruct, made) | {"reward_base_model_path": instruct}


def llava_adapter(folder: Path) -> Flags:
    """As LLaVA's trainer leaves it: config.json of the base beside it, and what was trained whole in a file."""
    flags = adapter(functools.partial(golden, "llava"), "model", folder)
    base, made = Path(flags["instruct_model_path"]), Path(flags["reward_model_path"])
    shutil.copyfile(base / "config.json", made / "config.json")
    projector = {
        f"base_model.model.{name}": value
        for shard in base.glob("model-*.safetensors")
        for name, value in load_file(shard).items()
        if "mm_projector" in name
    }
    torch.save(projector, made / "non_lora_trainables.bin")
    return flags


def pair(instruct: Path | str, reward: Path | str) -> Flags:
    return {"instruct_model_path": str(instruct), "reward_model_path": str(reward)}


def on(name: str, decoder: str) -> Callable[[Path], Flags]:
    """An adapter on one of transformers' families."""
    return functools.partial(adapter, functools.partial(family, name), decoder)


REMOTE = {"auto_map": {"AutoModel": "modeling.Model"}}

REPLICAS = {
    "llava": Replica(functools.partial(golden, "llava"), "llava"),
    "llava-hf": Replica(functools.partial(family, "llava"), "llava"),
    "omnilmm": Replica(functools.partial(golden, "omnilmm"), "omnilmm"),
    "llava_onevision": Replica(functools.partial(family, "llava_onevision"), "auto"),
    "qwen2_vl": Replica(functools.partial(family, "qwen2_vl"), "auto"),
    "qwen2_5_vl": Replica(functools.partial(family, "qwen2_5_vl"), "auto"),
    "mllama": Replica(functools.partial(family, "mllama"), "auto"),
    "internvl_chat": Replica(internvl, "auto"),
    "llava + LoRA": Replica(llava_adapter, "llava"),
    "llava_next + LoRA": Replica(on("llava_next", "model.language_model"), "auto"),
    "qwen2_vl + LoRA": Replica(on("qwen2_vl", "model.language_model"), "auto"),
    "qwen2_5_vl + LoRA": Replica(on("qwen2_5_vl", "model.language_model"), "auto"),
    "idefics3 + LoRA": Replica(on("idefics3", "model.text_model"), "auto"),
    "llava-1.6": Replica(llava_1_6, refusal="LLaVA-1.6 in its own layout"),
    "llava_qwen": Replica(functools.partial(own_code, {"model_type": "llava_qwen"}), refusal="does not know"),
    "qwen": Replica(functools.partial(own_code, {"model_type": "qwen"} | REMOTE), refusal="remote code is never run"),
    "beit3_llava": Replica(functools.partial(own_code, {"model_type": "beit3_llava"}), refusal="does not know"),
}
