"""How much memory a process holds while it merges an adapter: that of the weights once, in each way of loading."""

import json
import os
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

sys.path.append(str(Path(__file__).parents[1] / "distributed"))

from jobs import PYTHONPATH

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
# So large that what a process holds besides, some 60 MB, is a tenth of it.
SIZES = {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 32, "vocab_size": 4000,
         "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64}  # fmt: skip


@pytest.fixture(scope="module")
def large(checkpoints, tmp_path_factory):
    """A LLaVA of 0.8 billion bytes in bf16, and an adapter of every matrix of its decoder."""
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


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", [None, "auto"])
def test_merging_holds_the_weights_once(checkpoints, large, name, dtype):
    adapter, num_weights = large
    command = [sys.executable, "-c", MEASURE, str(name), str(checkpoints("llava").folder), str(adapter), dtype]
    # Not with the packages of other families, which need what only tests declare; one thread, since each has a heap.
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    ratio = int(done.stdout) / (num_weights * (2 if dtype == "bfloat16" else 4))
    print(f"peak anonymous memory: {ratio:.2f} times the weights")
    assert 0.9 < ratio <= 1.2
