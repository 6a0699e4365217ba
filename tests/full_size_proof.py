"""A start on two checkpoints of LLaVA-1.5-7B's size, 14 GB each, of zeros in sparse files: hashing, and memory.

    python tests/full_size_proof.py FOLDER

Two questions of two answers of four tokens in bfloat16 on this CPU. Prints the seconds that a start takes for hashing
when the files were hashed before, and the most memory of the run, beside what the weights take.
"""

import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from run_files import png
from sparse_checkpoint import write_checkpoint

ROOT = Path(__file__).parents[1]
MOST_HASHING_S, MOST_MEMORY = 2.0, 1.2


def run(folder: Path) -> tuple[str, int]:
    """Two questions through stages 0 and 1: what was logged, and the most memory of the process, in bytes."""
    rows = [{"idx": n, "question": "What?", "image": {"bytes": png(Image.new("RGB", (64, 48), (n, 90, 9))), "path": ""}}
            for n in range(2)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "questions.parquet")
    flags = {"dataset_path": "questions.parquet", "work_dir": "work", "sample_k": 2, "rank": 1, "max_new_tokens": 4}
    flags |= {"instruct_model_path": "instruct", "reward_model_path": "reward", "dtype": "bfloat16"}
    flags |= {"device": "cpu", "stop_after_stage": 1}
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
    found = [Checkpoint.find(str(folder / name)) for name in ("instruct", "reward")]
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
