"""The two worlds of the slow proofs: trained tiny models, and the benchmark's shape with its 576 image tokens."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from jobs import GOLDENS, ROOT, Job, write_questions
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel

CHECKPOINTS = ROOT / "engine/data_engine/demo/checkpoints"


def tiny_world(folder: Path) -> Job:
    """200 pictures of the demo, and its trained models."""
    questions = folder / "questions.parquet"
    command = [sys.executable, "-m", "data_engine.demo", "questions", str(questions), "--num", "200", "--seed", "3"]
    subprocess.run(command, check=True, cwd=ROOT)
    flags = ("--max_new_tokens", "40", "--unit_size", "8")
    return Job(questions, folder / "work", flags, CHECKPOINTS / "instruct", CHECKPOINTS / "reward")


def bench_shaped(folder: Path) -> Job:
    """5 questions to a random model of the benchmark's shape: 336 px, 576 image tokens, 8 layers x 512."""
    for seed, name in enumerate(("instruct", "reward")):
        write_shaped_checkpoint(folder / name, seed)
    flags = ("--sample_k", "4", "--rank", "2", "--distance", "1000", "--max_new_tokens", "8", "--unit_size", "1")
    questions = write_questions(folder / "questions.parquet", 5)
    return Job(questions, folder / "work", flags, folder / "instruct", folder / "reward")


def write_shaped_checkpoint(folder: Path, seed: int) -> None:
    """Random weights in the original layout, CLIP's inside, a small CLIP's configuration beside."""
    folder.mkdir()
    torch.manual_seed(0)  # one initial state; `seed` moves it a little, as DPO would
    text = LlamaConfig(
        vocab_size=1000, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
        initializer_range=0.05,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, image_size=336,
        patch_size=14,
    )  # fmt: skip
    decoder, tower = LlamaModel(text), CLIPVisionModel(vision)
    tensors = {f"model.{name}": value for name, value in decoder.named_parameters()}
    level = "model.vision_tower.vision_tower.vision_model."
    tensors |= {level + name.removeprefix("vision_model."): value for name, value in tower.named_parameters()}
    shapes = {"lm_head.weight": (1000, 512), "model.mm_projector.0.weight": (512, 128)}
    shapes |= {"model.mm_projector.0.bias": (512,), "model.mm_projector.2.weight": (512, 512)}
    shapes |= {"model.mm_projector.2.bias": (512,)}
    tensors |= {name: torch.randn(*shape) * 0.05 for name, shape in shapes.items()}
    torch.manual_seed(1 + seed)
    tensors = {name: (value + 0.003 * seed * torch.randn_like(value)).detach() for name, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((GOLDENS / "instruct/config.json").read_text())
    config |= {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
    config |= {"num_key_value_heads": 8, "mm_hidden_size": 128, "mm_vision_tower": "clip"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "clip").mkdir()
    (folder / "clip/config.json").write_text(json.dumps({"vision_config": vision.to_dict()}))
    shutil.copy(GOLDENS / "instruct/tokenizer.model", folder)
