"""Exports at size: `python tests/export_size_proof.py 48000 [--folder DIR] [--format LIST]`, or `make prove-exports`.

Pairs the answers of a stub model to so many questions, each with a picture of its own of about 50 kB, and then exports
them by `data-engine export` in every format, each alone: seconds, peak memory, and how many pictures were written.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import size_proof
from PIL import Image

from data_engine.exports import BEST_OF_N, EXPORTS
from data_engine.models.tokenizer import continuation, load_tokenizer

LIMIT_S, LIMIT_BYTES = 600, 2e9


CHECKPOINT = size_proof.ROOT / "engine/data_engine/demo/checkpoints/instruct"


def picture(number: int) -> bytes:
    """A JPEG of about 50 kB; what stands behind its end makes it another file for each number."""
    return _photograph(number % 50) + f"{number:09d}".encode()


def _photograph(number: int, made: dict[int, bytes] = {}) -> bytes:  # noqa: B006
    if number not in made:
        file = io.BytesIO()
        noise = np.random.default_rng(number).integers(0, 256, (120, 160, 3), np.uint8)
        Image.fromarray(noise).resize((640, 480)).save(file, "JPEG", quality=80)
        made[number] = file.getvalue()
    return made[number]


def paired(folder: Path, num_questions: int) -> Path:
    """The work directory of a run whose pairs are written."""
    tokenizer = load_tokenizer(CHECKPOINT)

    def encode(question: str, answer: str) -> list[int]:
        """As LLaVA-1.5 would have written it; rlaif-v-logps looks."""
        return [*continuation(tokenizer, f"\n{question} ASSISTANT:", f" {answer}"), tokenizer.eos]

    dataset, work_dir = size_proof.prepare(folder, num_questions, for_a_run=True, picture=picture, encode=encode)
    command = [sys.executable, "-m", "data_engine", "run", "--continue_from_stage", "2", "--threads", "1"]
    for flag, value in size_proof.flags(dataset, work_dir).items():
        command += [f"--{flag}", value]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return work_dir


def measure(work_dir: Path, name: str, output: Path) -> tuple[float, int]:
    """Seconds and peak bytes of one export, all its processes together."""
    command = [sys.executable, "-m", "data_engine", "export", str(work_dir), "--format", name, "--output", str(output)]
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None:
        peak = max(peak, sum(size_proof.resident(process.pid)))
        time.sleep(size_proof.POLL_S)
    if process.returncode:
        raise SystemExit(f"the export {name} ended with exit code {process.returncode}")
    return time.perf_counter() - start, peak


def main() -> str | None:
    """Measure each format; what is wrong with the result, None if all is well."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("num_questions", type=int)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--format", default=",".join(EXPORTS))
    options, faults = parser.parse_args(), []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        work_dir, output = paired(Path(folder), options.num_questions), Path(folder, "export")
        kept = pq.read_table(work_dir / "pairs/pairs.parquet", columns=["idx", "status"]).to_pylist()
        kept = [row["idx"] for row in kept if row["status"] == "kept"]
        print(f"{options.num_questions} questions, {len(kept)} pairs of {len(set(kept))} of them", flush=True)
        for name in options.format.split(","):
            seconds, peak = measure(work_dir, name, output)
            pictures = sum(path.is_file() for path in (output / name / "images").rglob("*"))
            size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
            told = f"{name}: {seconds:.0f} s, peak memory {peak / 1e6:.0f} MB, {size / 1e9:.2f} GB"
            print(told + (f", {pictures} pictures" if pictures else ""), flush=True)
            if seconds > LIMIT_S or peak > LIMIT_BYTES:
                faults.append(f"{name} took {seconds:.0f} s and {peak / 1e6:.0f} MB")
            asked = options.num_questions if name in BEST_OF_N else len(set(kept))
            if pictures not in (0, asked):
                faults.append(f"{name} wrote {pictures} pictures of {asked} questions")
            shutil.rmtree(output)
    return "; ".join(faults) or None


if __name__ == "__main__":
    sys.exit(main())
