"""How much memory a process holds while it merges an adapter: that of the weights once, in each way of loading."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import adapters
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, LlavaForConditionalGeneration

# A small checkpoint is loaded first, since modules that are imported on the way count as well. Pages of the file, which
# transformers maps whole while it loads, with or without an adapter, are the system's to take back.
MEASURE = """
import sys, threading, time
from data_engine import load_model

def held():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

name, small, folder, dtype = sys.argv[1:]
name = None if name == "None" else name
load_model(name, small, device="cpu", dtype=dtype)
before, peak, done = held(), 0, threading.Event()
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, held()); time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
model = load_model(name, folder, device="cpu", dtype=dtype)
peak = max(peak, held()); done.set(); thread.join()
print(peak - before)
"""
SIZES = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 32, "vocab_size": 4000,
         "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}  # fmt: skip


@pytest.fixture(scope="module")
def large(checkpoints, tmp_path_factory):
    """A LLaVA of a quarter of a billion bytes in bf16, and an adapter of every matrix of its decoder."""
    folder = Path(shutil.copytree(checkpoints("llava").folder, tmp_path_factory.mktemp("large") / "base"))
    raw = json.loads((folder / "config.json").read_text())
    raw["text_config"] |= SIZES
    (folder / "config.json").write_text(json.dumps(raw))
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(AutoConfig.from_pretrained(folder))
    shapes = {name: value.shape for name, value in model.named_parameters()}
    save_file(
        {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items()},
        folder / "model.safetensors", {"format": "pt"},
    )  # fmt: skip
    changed = {name: torch.empty(shape) for name, shape in shapes.items()
               if re.search(r"language_model.*_proj\.weight", name)}  # fmt: skip
    assert len(changed) == 7 * 32
    pairs = {name: (a.bfloat16(), b.bfloat16()) for name, (a, b) in adapters.matrices(changed, 16).items()}
    adapter = adapters.write(folder.parent / "adapter", folder, adapters.stored(pairs), r=16)
    return adapter, sum(shape.numel() for shape in shapes.values())


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.families)])
@pytest.mark.parametrize("name", [None, pytest.param("auto", marks=pytest.mark.families)])
def test_merging_holds_the_weights_once(checkpoints, large, name, dtype):
    adapter, num_weights = large
    command = [sys.executable, "-c", MEASURE, str(name), str(checkpoints("llava").folder), str(adapter), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ratio = int(done.stdout) / (num_weights * (2 if dtype == "bfloat16" else 4))
    print(f"peak anonymous memory: {ratio:.2f} times the weights")
    assert 0.9 < ratio <= 1.2
