"""Rounds of training in the demo's world, where the truth is known: loop.py FOLDER --rounds R --num N [--one_reward]

`data-engine loop` over N new pictures a round, TRL's DPOTrainer in the settings of the proof; then how much the first
model and that of each round hallucinate, on pictures that no training saw. Goes on where it was stopped.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import yaml
from checkpoint import to_transformers
from experiment import CHECKPOINTS, HERE, ROOT

FLAGS = (
    "--device", "cpu", "--dtype", "float32", "--max_new_tokens", "40", "--max_pairs", "1", "--threads", "1",
    "--export", "trl",
)  # fmt: skip
NUM_JUDGED = 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--one_reward", action="store_true", help="against the first model in all rounds")
    asked = parser.parse_args()
    folder = asked.folder.absolute()
    for role in ("instruct", "reward"):
        if not (folder / role).exists():
            to_transformers(CHECKPOINTS / role, folder / role)
    for number in range(1, asked.rounds + 1):
        if not (questions := folder / f"questions-{number}.parquet").exists():
            run(
                "-m",
                "data_engine.demo",
                "questions",
                questions,
                "--num",
                asked.num,
                "--seed",
                1000 * asked.seed + number,
            )
    settings = yaml.safe_load((HERE / "settings.yaml").read_text())["dpo"]
    recipe = {"model": "{model}", "dataset": "{exports}/trl", "method": "dpo", "seed": asked.seed}
    recipe = json.dumps(recipe | {"num_rows": None} | settings)
    run(
        "-m", "data_engine", "loop", "--rounds", asked.rounds, "--work_dir", folder / "loop", *FLAGS,
        "--train", shlex.join([sys.executable, str(HERE / "train.py"), "{output}", recipe]),
        "--dataset_path", folder / "questions-{round}.parquet",
        *(word for role in ("instruct", "reward") for word in (f"--{role}_model_path", folder / role)),
        *(("--reference_model_path", folder / "instruct") if asked.one_reward else ()),
    )  # fmt: skip
    models = {"instruct": folder / "instruct"}
    models |= {f"round {number}": folder / f"loop/round-{number}/model" for number in range(1, asked.rounds + 1)}
    print("model     hallucinated at T = 0.7  greedy  objects mentioned at T = 0.7  words")
    for name, model in models.items():
        verdict = folder / f"judged {name}.json"
        if not verdict.exists():
            run(HERE / "judge.py", model, verdict, 0, NUM_JUDGED)
        print(line(name, json.loads(verdict.read_text())))


def run(*words: object) -> None:
    subprocess.run([sys.executable, *map(str, words)], check=True, cwd=ROOT)


def line(name: str, verdict: dict) -> str:
    """CHAIR_i, coverage and words, of judge.COUNTS by picture."""
    (claims, wrong, found, objects, words), greedy = (
        [sum(column) for column in zip(*verdict[way], strict=True)] for way in ("sampled", "greedy")
    )
    shares = f"{100 * wrong / claims:>22.1f} %  {100 * greedy[1] / greedy[0]:>4.1f} %"
    return f"{name:<9} {shares}  {100 * found / objects:>26.1f} %  {words / len(verdict['sampled']):>5.1f}"


if __name__ == "__main__":
    main()
