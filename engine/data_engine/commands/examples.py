"""Two whole command lines a command, which end its --help, and how a command reads its arguments.

This table is the one place that has the command lines.
"""

import argparse
import re
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from data_engine.errors import UserError, nearest

CONFIG = "--config configs/llava-1.5-7b.yaml"
WORK_DIR = "runs/llava-1.5-7b"

# Command: (what it does, command line), twice.
EXAMPLES = {
    "run": (
        ("a first try: four questions, short answers", f"data-engine run {CONFIG} --limit 4 --max_new_tokens 32 "
         "--work_dir runs/first-try"),
        ("without a file of settings", "data-engine run --instruct_model_path llava-hf/llava-1.5-7b-hf "
         "--reward_model_path models/llava-dpo --dataset_path data/questions.parquet --work_dir runs/own"),
    ),
    "validate": (
        ("before a run, with the flags of the run", f"data-engine validate {CONFIG}"),
        ("how long it will take, from a minute of its own work", f"data-engine validate {CONFIG} --measure"),
    ),
    "submit": (
        ("four jobs, and one that pairs", f"data-engine submit {CONFIG} --array 4 "
         '--sbatch "--partition gpu --gres gpu:8 --time 12:00:00" --sbatch_pair "--gres none"'),
        ("one GPU a job", f'data-engine submit {CONFIG} --work_dir runs/array --array 16 --sbatch "--gres gpu:1"'),
    ),
    "status": (
        ("a screen that looks again every 30 seconds, until the dataset is written",
         f"data-engine status {WORK_DIR} --watch 30"),
        ("one JSON object, for programs", f"data-engine status {WORK_DIR} --json"),
    ),
    "pairs": (
        ("pairs that two rewards agree on", f"data-engine pairs {WORK_DIR} --name agreed --strategy best_worst "
         "--rank_by implicit.avg,contrast.avg"),
        ("pairs of a large margin alone, one a question", f"data-engine pairs {WORK_DIR} --name clear --min_margin 0.5 "
         "--max_pairs 1"),
    ),
    "export": (
        ("for two trainers", f"data-engine export {WORK_DIR} --format trl,llama-factory --output datasets/llava"),
        ("to the Hugging Face hub", f"data-engine export {WORK_DIR} --format trl --push_to_hub OWNER/NAME "
         "--license cc-by-4.0 --private"),
    ),
    "loop": (
        ("three rounds by a trainer of one's own", f"data-engine loop {CONFIG} --work_dir runs/loop --rounds 3 "
         "--train 'sh train.sh {model} {dataset} {output}'"),
        ("other questions in each round, pairs for TRL", f"data-engine loop {CONFIG} --work_dir runs/loop --rounds 2 "
         "--dataset_path 'data/part-{round}.parquet' --export trl --train 'python train.py {model} {exports}/trl "
         "{output}'"),
    ),
    "report": (
        ("of the run's own pairs, in a browser", f"data-engine report {WORK_DIR} --open"),
        ("two pairings side by side", f"data-engine report {WORK_DIR} --compare agreed"),
    ),
    "bench": (
        ("some minutes, on the CPU", "data-engine bench --quick"),
        ("your checkpoint, and what 50,000 questions would take", "data-engine bench --model models/llava-v1.5-7b "
         "--device auto --questions 50000"),
    ),
}  # fmt: skip


def shown(command: str) -> str:
    """The end of a command's help."""
    return "examples:\n" + "\n".join(f"  # {what}\n  {line}" for what, line in EXAMPLES[command])


# A negative number, which argparse takes for a flag where it has an exponent.
_NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


class Whole(argparse.HelpFormatter):
    """Lines of help that end between words alone: a format's name that is cut at its hyphen cannot be copied."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """A command's parser, whose help ends with its examples; the last word of `prog` is the command.

    What is wrong with the arguments is a UserError.
    """

    def __init__(self, **settings: object) -> None:
        super().__init__(**{"formatter_class": Whole, **settings})

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse, with negative numbers of any form as values."""
        words: list[str] = []
        for word in args or ():
            follows_flag = words and words[-1].startswith("--") and "=" not in words[-1]
            if follows_flag and _NEGATIVE.fullmatch(word):
                word = f"{words.pop()}={word}"
            words.append(word)
        return super().parse_known_args(words, namespace)

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As argparse; of a misspelt flag the nearest one is told, also where it is one that is required."""
        known = [flag.removeprefix("--") for flag in self._option_string_actions if flag.startswith("--")]
        told = (word.partition("=")[0].removeprefix("--") for word in args or () if word.startswith("--"))
        flag = next((name for name in told if name and name not in known), None)
        hint = nearest(flag, known, "--") if flag else ""
        try:
            found, unknown = self.parse_known_args(args, namespace)
        except UserError as error:
            # A required flag that is misspelt counts as missing.
            raise UserError(f"unknown flag --{flag}{hint}; {error}" if flag else str(error)) from None
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found

    def error(self, message: str) -> NoReturn:
        """Raise UserError with it."""
        raise UserError(f"{message}; {self.prog} --help lists all")

    def format_help(self) -> str:
        return f"{super().format_help()}\n{shown(self.prog.split()[-1])}\n"
