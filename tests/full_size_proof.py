"""A start on two checkpoints of LLaVA-1.5-7B's size, 14 GB each, of zeros in sparse files: hashing, and memory.

    python tests/full_size_proof.py FOLDER

Two questions of two answers of four tokens in bfloat16 on this CPU. Prints the seconds that a start takes for hashing
when the files were hashed before, and the most memory of the run, beside what the weights take.
"""

import json
import logging
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from run_files import png

ROOT = Path(__file__).parents[1]
TOKENIZER = ROOT / "tests/goldens/llava/instruct/tokenizer.model"
LAYERS, WIDTH, INNER, VOCABULARY = 32, 4096, 11008, 32000
VISION = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14, "projection_dim": 768, "model_type": "clip_vision_model",
}  # fmt: skip
MOST_HASHING_S, MOST_MEMORY = 2.0, 1.2


def shapes() -> dict[str, list[int]]:
    """Names and shapes of the published checkpoint, with its tower, in transformers' layout."""
    text, vision = "language_model.model.", "vision_tower.vision_model."
    found = {f"{text}embed_tokens.weight": [VOCABULARY, WIDTH], f"{text}norm.weight": [WIDTH]}
    found["language_model.lm_head.weight"] = [VOCABULARY, WIDTH]
    for layer in range(LAYERS):
        at = f"{text}layers.{layer}."
        found |= {f"{at}self_attn.{name}_proj.weight": [WIDTH, WIDTH] for name in "qkvo"}
        found |= {f"{at}mlp.{name}_proj.weight": [INNER, WIDTH] for name in ("gate", "up")}
        found[f"{at}mlp.down_proj.weight"] = [WIDTH, INNER]
        found |= {f"{at}{name}_layernorm.weight": [WIDTH] for name in ("input", "post_attention")}
    width, inner = VISION["hidden_size"], VISION["intermediate_size"]
    found[f"{vision}embeddings.class_embedding"] = [width]
    found[f"{vision}embeddings.patch_embedding.weight"] = [width, 3, 14, 14]
    found[f"{vision}embeddings.position_embedding.weight"] = [577, width]
    norms = [f"{vision}pre_layrnorm", f"{vision}post_layernorm"]
    linears = {}
    for layer in range(VISION["num_hidden_layers"]):
        at = f"{vision}encoder.layers.{layer}."
        norms += [f"{at}layer_norm1", f"{at}layer_norm2"]
        linears |= {f"{at}self_attn.{name}": [width, width] for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        linears |= {f"{at}mlp.fc1": [inner, width], f"{at}mlp.fc2": [width, inner]}
    linears |= {"multi_modal_projector.linear_1": [WIDTH, width], "multi_modal_projector.linear_2": [WIDTH, WIDTH]}
    for name in norms:
        found |= {f"{name}.weight": [width], f"{name}.bias": [width]}
    for name, shape in linears.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found


def write_checkpoint(folder: Path, shards: int = 3) -> int:
    """A checkpoint of zeros in float16; the bytes of its weights."""
    folder.mkdir(parents=True)
    names, total, weight_map = list(shapes().items()), 0, {}
    for shard in range(shards):
        file = folder / f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in names[shard::shards]:
            size = 2
            for one in shape:
                size *= one
            header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
            weight_map[name], offset = file.name, offset + size
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with open(file, "wb") as opened:
            opened.write(struct.pack("<Q", len(encoded)) + encoded)
            opened.truncate(8 + len(encoded) + offset)
        total += offset
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    text = {
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": 32, "vocab_size": VOCABULARY, "max_position_embeddings": 4096,
    }  # fmt: skip
    config = {"model_type": "llava", "text_config": text, "vision_config": VISION}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(TOKENIZER.read_bytes())
    return total


def run(folder: Path) -> tuple[str, int]:
    """Two questions through stage 0: what was logged, and the most memory of the process, in bytes."""
    rows = [{"idx": n, "question": "What?", "image": {"bytes": png(Image.new("RGB", (64, 48), (n, 90, 9))), "path": ""}}
            for n in range(2)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "questions.parquet")
    flags = {"dataset_path": "questions.parquet", "work_dir": "work", "sample_k": 2, "rank": 1, "max_new_tokens": 4}
    flags |= {"instruct_model_path": "instruct", "reward_model_path": "reward", "dtype": "bfloat16"}
    flags |= {"device": "cpu", "stop_after_stage": 0}
    command = [sys.executable, "-m", "data_engine", "run", *(f"--{name}={value}" for name, value in flags.items())]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    most = 0

    def watch() -> None:
        nonlocal most
        while process.poll() is None:
            try:
                text = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            most = max(
                most, *(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM")), 0
            )
            time.sleep(0.2)

    watching = threading.Thread(target=watch)
    watching.start()
    _, told = process.communicate()
    watching.join()
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}\n{told}")
    return told, most


def hashing_seconds(folder: Path) -> float:
    """What a start takes to know both models by their content."""
    from data_engine.job.checkpoints import Checkpoint
    from data_engine.store.claims import Claims
    from data_engine.store.file_hashes import FileHashes

    logging.basicConfig(level=logging.INFO)
    found = [Checkpoint.find(str(folder / name), None, None) for name in ("instruct", "reward")]
    hashes = FileHashes(folder / "work", Claims(folder / "work", 0))
    start = time.perf_counter()
    for checkpoint in found:
        checkpoint.fingerprint(hashes)
    return time.perf_counter() - start


def main(folder: Path) -> int:
    weights, _ = (write_checkpoint(folder / name) for name in ("instruct", "reward"))
    first, again = hashing_seconds(folder), hashing_seconds(folder)
    print(
        f"hashing two checkpoints of {weights / 1e9:.1f} GB: {first:.1f} s, then {again:.3f} s (limit {MOST_HASHING_S})"
    )
    told, most = run(folder)
    print(told[-2000:])
    ratio = most / weights
    print(
        f"most memory {most / 1e9:.1f} GB for {weights / 1e9:.1f} GB of weights: {ratio:.2f} x (at most {MOST_MEMORY})"
    )
    return int(again > MOST_HASHING_S or ratio > MOST_MEMORY)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
