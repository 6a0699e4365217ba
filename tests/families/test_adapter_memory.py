"""How much memory a process holds while it merges an adapter: that of the weights once, in each way of loading."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import adapters
import internvl_folders
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


BYTES = {"bfloat16": 2, "float32": 4}
DTYPES = [pytest.param(name, marks=pytest.mark.long) if name == "float32" else name for name in BYTES]


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
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [None, "auto"])
def test_merging_holds_the_weights_once(checkpoints, large, name, dtype):
    adapter, num_weights = large
    assert 0.9 < peak(name, checkpoints("llava").folder, adapter, dtype) / (num_weights * BYTES[dtype]) <= 1.2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_merging_into_internvls_own_layout_holds_the_weights_once(tmp_path, dtype):
    """Packed weights are changed whole and then split."""
    small, folder = (internvl_folders.write(tmp_path / name, "internlm2") for name in ("small", "base"))
    sizes = {f"llm_config__{name}": size for name, size in SIZES.items() if name != "vocab_size"}
    internvl_folders.change(folder, **sizes)
    shapes = internvl_folders.shapes_of(json.loads((folder / "config.json").read_text()))
    save_file(
        {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items()},
        folder / "model.safetensors", {"format": "pt"},
    )  # fmt: skip
    changed = {name: torch.empty(shape) for name, shape in shapes.items()
               if re.search(r"language_model.*(wqkv|wo|w1|w2|w3)\.weight", name)}  # fmt: skip
    assert len(changed) == 5 * 32
    pairs = {name: (a.bfloat16(), b.bfloat16()) for name, (a, b) in adapters.matrices(changed, 16).items()}
    adapter = adapters.write(tmp_path / "adapter", folder, adapters.stored(pairs), r=16)
    weights = sum(torch.Size(shape).numel() for shape in shapes.values()) * BYTES[dtype]
    assert 0.9 < peak(None, small, adapter, dtype) / weights <= 1.2


def peak(name: str | None, small: Path, adapter: Path, dtype: str) -> int:
    """Most bytes that a process holds besides what it held before, while it loads the adapter."""
    command = [sys.executable, "-c", MEASURE, str(name), str(small), str(adapter), dtype]
    # Not with the packages of other families, which need what only tests declare; one thread, since each has a heap.
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    print(f"peak anonymous memory: {int(done.stdout) / 1e9:.2f} GB")
    return int(done.stdout)
