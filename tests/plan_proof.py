"""`validate --measure` against real runs: `make prove-plan`, ARGS="--only demo" or "--only bench".

Each round measures, then runs the same command from an empty work directory through launch/run_engine.sh, and holds the
predicted seconds against the real ones, by the clock and of the processors. Rounds in which another program works
beside differ by the clock more than by the processors' time. A ratio outside of 1.5 either way fails, by the median of
the rounds.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from data_engine.bench.model import Sizes, photo
from data_engine.bench.shapes import write_checkpoint

ROOT = Path(__file__).parents[1]
MOST_OFF = 1.5
# The size that data-engine bench makes: see bench/model.py. A few dozen questions in units of 8.
BENCH_QUESTIONS, BENCH_K, BENCH_TOKENS = 32, 10, 64


@dataclass(frozen=True)
class Case:
    """A run to predict."""

    name: str
    flags: list[str]
    work_dir: Path
    ranks: int


def demo(folder: Path) -> Case:
    """configs/demo.yaml, as `make demo` runs it."""
    questions = folder / "demo.parquet"
    command = [sys.executable, "-m", "data_engine.demo", "questions", questions, "--num", "200", "--seed", "0"]
    subprocess.run(command, check=True, cwd=ROOT)
    flags = ["--config", "configs/demo.yaml", "--dataset_path", str(questions), "--work_dir", str(folder / "demo")]
    return Case("demo", flags, folder / "demo", 2)


def bench(folder: Path) -> Case:
    """The model of `data-engine bench`, with photographs, written to disk; the reward model has another head."""
    vocab = Sizes.vocab
    for role in ("instruct", "reward"):
        write_checkpoint(folder / role, vocab)
    weights = load_file(folder / "reward/model.safetensors")
    head = next(name for name in weights if name.endswith("lm_head.weight"))
    generator = torch.Generator().manual_seed(1)
    weights[head] += 0.01 * torch.randn(weights[head].shape, generator=generator)
    save_file(weights, folder / "reward/model.safetensors", {"format": "pt"})
    rows = [
        {"idx": number, "question": "wf wg wh", "image": {"bytes": photo(number), "path": None}}
        for number in range(BENCH_QUESTIONS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "bench.parquet")
    flags = [
        "--instruct_model_path", str(folder / "instruct"), "--reward_model_path", str(folder / "reward"),
        "--dataset_path", str(folder / "bench.parquet"), "--work_dir", str(folder / "bench"), "--device", "cpu",
        "--sample_k", str(BENCH_K), "--max_new_tokens", str(BENCH_TOKENS),
    ]  # fmt: skip
    return Case("bench", flags, folder / "bench", 2)


def spent(command: list[str], ranks: int) -> tuple[float, float, str]:
    """Seconds by the clock and of the processors, and what was written to standard output."""
    accelerate = str(ROOT / "launch/accelerate/cpu.yaml")
    threads = str(max(1, len(os.sched_getaffinity(0)) // ranks))
    environment = os.environ | {"PYTHON": sys.executable, "NUM_PROCESSES": str(ranks), "ACCELERATE_CONFIG": accelerate}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env=environment | {"OMP_NUM_THREADS": threads}, capture_output=True, text=True, check=False
    )
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    # 4: nothing could be written, which a random model may well come to.
    if done.returncode not in (0, 4):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, done.stdout


def one_round(case: Case) -> dict[str, float]:
    """Predicted and real, once."""
    shutil.rmtree(case.work_dir, ignore_errors=True)
    command = [sys.executable, "-m", "data_engine", "validate", *case.flags, "--measure", "--json"]
    measure_s, _, told = spent(command, case.ranks)
    measured = json.loads(told)["measured"]
    parts = ", ".join(f"{stage['name']} {stage['seconds']:.1f}" for stage in measured["stages"])
    print(f"predicted seconds: {parts}; processors had {measured['processor_share']:.2f} of the time", flush=True)
    real_s, real_cpu_s, _ = spent([str(ROOT / "launch/run_engine.sh"), *case.flags], case.ranks)
    low, high = measured["seconds_range"]
    return {
        "measuring_s": measure_s, "predicted_s": measured["seconds"], "low_s": low, "high_s": high, "real_s": real_s,
        "ratio": measured["seconds"] / real_s, "predicted_cpu_s": measured["processor_seconds"],
        "real_cpu_s": real_cpu_s, "cpu_ratio": measured["processor_seconds"] / real_cpu_s,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=("demo", "bench"))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    folder, failed = arguments.folder.resolve(), False
    for name, make in (("demo", demo), ("bench", bench)):
        if arguments.only not in (None, name):
            continue
        case, rounds = make(folder), []
        for number in range(arguments.rounds):
            rounds.append(one_round(case))
            told = ", ".join(f"{key} {value:.2f}" for key, value in rounds[-1].items())
            print(f"{name}, round {number + 1}: {told}", flush=True)
        medians = {key: statistics.median(one[key] for one in rounds) for key in ("ratio", "cpu_ratio")}
        within = 1 / MOST_OFF <= medians["ratio"] <= MOST_OFF
        failed |= not within
        print(
            f"{name}: predicted / real {medians['ratio']:.2f} by the clock, {medians['cpu_ratio']:.2f} of processors, "
            f"medians of {len(rounds)}: {'within' if within else 'OUTSIDE OF'} a factor of {MOST_OFF}", flush=True,
        )  # fmt: skip
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
